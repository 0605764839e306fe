import pathlib
import re
import runpy
import sys

import pytest
import standins
from absl import app, flags

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def run(monkeypatch, name, *arguments):
    """Runs a program here: TensorFlow would take seconds to start."""
    others = set(flags.FLAGS)

    def parse_and_run(main):
        main(flags.FLAGS([name, *arguments]))

    monkeypatch.setattr(app, "run", parse_and_run)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    flags.FLAGS.remove_flag_values(set(flags.FLAGS) - others)


@pytest.mark.filterwarnings("ignore:5 of 1797 images do not fill a batch")
def test_examples_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    standins.use(monkeypatch)
    out = tmp_path / "encoder"
    run(
        monkeypatch,
        "pretrain_on_arrays.py",
        f"--output_dir={out}",
        "--epochs=1",
    )
    # It does without; a test of the export loads one in a fresh process.
    monkeypatch.setitem(sys.modules, "keras_simclr", None)
    run(
        monkeypatch,
        "classify_with_few_labels.py",
        f"--encoder_dir={out}",
        "--epochs=2",
    )
    text = capsys.readouterr().out
    assert re.search(r"accuracy with 100 labels: 0\.\d+\n", text)
