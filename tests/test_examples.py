import pathlib
import re
import runpy
import subprocess
import sys

import pytest
from absl import app, flags
from helpers import standins

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
    few = [f"--encoder_dir={out}", "--epochs=2"]
    # They do without; tests of the export load one in fresh processes.
    monkeypatch.setitem(sys.modules, "keras_simclr", None)
    run(monkeypatch, "classify_with_few_labels.py", *few)
    run(monkeypatch, "classify_with_saved_model.py", *few)
    text = capsys.readouterr().out
    accuracies = re.findall(r"accuracy with 100 labels: (0\.\d+)\n", text)
    assert len(accuracies) == 2
    # tf_keras needs a process without Keras 3.
    script = EXAMPLES / "fine_tune_with_hub.py"
    result = subprocess.run(
        [sys.executable, script, *few], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "accuracy with 100 labels: 0." in result.stdout
