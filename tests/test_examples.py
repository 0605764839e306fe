import pathlib
import re
import subprocess
import sys

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def run(name, *arguments):
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
    )


def test_examples_run_one_after_the_other(tmp_path):
    out = tmp_path / "encoder"
    first = run("pretrain_on_arrays.py", f"--output_dir={out}", "--epochs=1")
    assert first.returncode == 0, first.stderr[-2000:]
    second = run(
        "classify_with_few_labels.py", f"--encoder_dir={out}", "--epochs=2"
    )
    assert second.returncode == 0, second.stderr[-2000:]
    assert re.search(r"accuracy with 100 labels: 0\.\d+\n", second.stdout)
