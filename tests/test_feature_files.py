import errno

import numpy as np
import pytest
from helpers import standins

import keras_simclr as simclr
from keras_simclr import feature_files, features

pytestmark = pytest.mark.usefixtures("eagerly")
QUICK = {"probes": ["knn"], "labels": ["all"], "baselines": False}


@pytest.fixture(scope="module")
def model():
    return standins.model()


@pytest.fixture(scope="module")
def images():
    return standins.labelled_images()


def counting(monkeypatch):
    """List of the numbers of features that are made of so many images."""
    counts, extract = [], features.extract

    def noting(functions, elements):
        arrays, others = extract(functions, elements)
        counts.append((len(arrays), len(arrays[0])))
        return arrays, others

    monkeypatch.setattr(features, "extract", noting)
    return counts


def test_features_are_made_only_once(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "FEW_IMAGES", 4)
    place, words = tmp_path / "features", []
    place.mkdir()
    (place / "mine.npz").write_text("mine")
    options = {"probes": ["knn"], "labels": ["all"], "features_dir": place}
    counts = counting(monkeypatch)

    def run(model, images, **more):
        counts.clear()
        return simclr.evaluate(model, images, images, **options, **more)

    first = run(model, images, report=words.append)
    assert (3, 48) in counts
    assert any(f"{place} keeps features, 0 MiB" in text for text in words)
    kept = {*place.iterdir()}
    assert len(kept) == 3
    words.clear()
    again = run(model, images, report=words.append)
    assert [x for x in counts if x[1] == 48] == [(1, 48)]  # Pixels.
    assert f"Features of untrained, simclr are those in {place}." in words
    assert (again.rows, again.gains) == (first.rows, first.gains)
    # Files that are broken, or begin otherwise, are made again.
    for spoil in (
        lambda path: path.write_bytes(path.read_bytes()[:-400]),
        lambda path: np.savez(path, representations=np.ones((48, 6))),
    ):
        for path in kept - {place / "mine.npz"}:
            spoil(path)
        assert run(model, images).rows == first.rows
        assert (3, 48) in counts
    run(model, images)
    assert (3, 48) not in counts
    # Of other images there are others, and these are gone.
    run(model, (images[0] / 2, images[1]))
    assert (3, 48) in counts
    assert len({*place.iterdir()} & kept) == 1
    assert len({*place.iterdir()}) == 3
    assert (place / "mine.npz").read_text() == "mine"


def test_features_that_cannot_be_kept_cost_nothing_else(
    model, images, tmp_path, monkeypatch, said
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    options = {**QUICK, "features_dir": tmp_path / "features"}
    monkeypatch.setattr(feature_files, "_MOST", 100)
    simclr.evaluate(model, images, images, **options)
    assert not any(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr(feature_files.np, "savez", full)
    simclr.evaluate(model, images, images, **options)
    assert said.messages[-1].startswith("Features are not kept: ")
    assert not any((tmp_path / "features").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="must be one that can be written"):
        simclr.evaluate(
            model, images, images, features_dir=tmp_path / "file", **QUICK
        )
