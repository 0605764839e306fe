import functools
import json
import shutil
import subprocess

import numpy as np
import pytest

from keras_simclr import demo, evaluation


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "demo"
    quick = functools.partial(evaluation.evaluate, labels=(10,), draws=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "evaluate", quick)
        demo.run(path, epochs=1)
    return path


def test_demo_writes_all_it_promises(output_dir):
    assert sorted(path.name for path in output_dir.iterdir()) == [
        "encoder",
        "epoch-000001.weights.h5",
        "flags.txt",
        "log.csv",
        "loss.png",
        "model.keras",
        "summary.json",
        "views.png",
    ]
    summary = json.loads((output_dir / "summary.json").read_text())
    assert summary["command"] == "demo"
    assert len(summary["rows"]) == 6
    for name in ("loss.png", "views.png"):
        assert (output_dir / name).read_bytes().startswith(b"\x89PNG")


def test_demo_replaces_a_demo_but_leaves_foreign_files_alone(
    output_dir, tmp_path
):
    earlier, foreign = tmp_path / "earlier", tmp_path / "foreign"
    for path in (earlier, foreign):
        shutil.copytree(output_dir, path)
    demo._clear(earlier)
    assert not earlier.exists()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="must be new, empty"):
        demo.run(foreign, epochs=1)
    assert (foreign / "notes.txt").read_text() == "mine"
    assert (foreign / "model.keras").exists()


def test_demo_notices_an_export_that_disagrees(output_dir):
    images = np.zeros((4, 8, 8, 1), "float32")

    class Other:
        def predict(self, images, verbose):
            return np.full((len(images), 128), 7.0)

    with pytest.raises(subprocess.CalledProcessError):
        demo._check_export(output_dir / "encoder/saved_model", images, Other())


def test_digits_are_split_by_class_and_scaled():
    (images, labels), (test_images, test_labels) = demo.digits()
    assert images.min() == test_images.min() == 0.0
    assert images.max() == test_images.max() == 1.0
    assert np.bincount(labels).min() >= 139
    assert np.bincount(test_labels).min() >= 34
