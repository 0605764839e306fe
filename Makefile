# make demo: install into .venv and run the demo.
# make test: install into .venv and run the linter and the tests.
# make coverage: the tests, tracing what they cover: half as long again.
# make benchmark: measure beside the peers (an hour); see benchmarks/README.md.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: benchmark coverage demo test

demo: .venv/installed
	$(BIN)/keras-simclr demo

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest --numprocesses=2 --durations=10

coverage: .venv/installed-test
	$(BIN)/pytest --numprocesses=2 --cov

benchmark: .venv/installed
	$(BIN)/python benchmarks/run.py

.venv/installed: setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-test: setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@
