# make demo: install into .venv and run the demo.
# make test: install into .venv and run the linter and the tests.
# make test-quick: what guards most, in under a minute.
# make lint, make format: check style and format, mend them.
# make test-versions: the tests on every TensorFlow that is supported: an hour.
# make coverage: the tests, tracing what they cover: half as long again.
# make benchmark: measure beside the peers (an hour); see benchmarks/README.md.
# make claims: try the paper's claims (four hours) and write docs/claims.md.
# make parity: compare values with tensorflow-addons; see docs/parity.md.

PYTHON ?= python3
BIN := .venv/bin

CLAIMS := heads temperature losses augmentations batch_and_epochs width few_labels
QUICK := architecture checks recipe losses elements fit_data sampling optimizers

.PHONY: benchmark claims coverage demo format lint parity test test-newest \
	test-quick test-versions

demo: .venv/installed
	$(BIN)/keras-simclr demo

test: lint
	$(BIN)/pytest --numprocesses=2 --durations=10

test-quick: .venv/installed-test
	$(BIN)/pytest --numprocesses=2 $(QUICK:%=tests/test_%.py)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-versions: test-2.19 test-2.20 test-2.21 test-newest

# Its protobuf is older than what newer ones need; pip does not know.
test-2.19: PINS = 'tensorflow-metadata<1.18'

test-2.%:
	$(PYTHON) -m venv .versions/2.$*
	.versions/2.$*/bin/pip install --quiet --editable '.[test]' 'tensorflow==2.$*.*' 'keras==3.15.*' $(PINS)
	.versions/2.$*/bin/pytest --numprocesses=2

test-newest:
	$(PYTHON) -m venv .versions/newest
	.versions/newest/bin/pip install --quiet --upgrade --editable '.[test]' tensorflow keras
	.versions/newest/bin/pytest --numprocesses=2

coverage: .venv/installed-test
	$(BIN)/pytest --numprocesses=2 --cov

benchmark: .venv/installed
	$(BIN)/python benchmarks/run.py

claims: .venv/installed
	for claim in $(CLAIMS); do $(BIN)/python benchmarks/claims/$$claim.py || exit 1; done
	$(BIN)/python benchmarks/claims/report.py

parity: .venv/installed .parity/installed
	$(BIN)/python benchmarks/parity/parity.py .parity/bin/python

# No newer Python has a TensorFlow that tensorflow-addons can be imported with.
.parity/installed:
	python3.11 -m venv .parity
	.parity/bin/pip install --quiet tensorflow==2.15.1 tensorflow-addons==0.23.0
	touch $@

.venv/installed: setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-test: setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@
