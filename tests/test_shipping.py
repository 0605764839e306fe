import types

import keras
import pytest
from helpers import standins

import keras_simclr as simclr
from keras_simclr import classification, export, shipping


def test_parameters_and_bytes_are_those_of_what_is_exported(tmp_path):
    model = standins.model()
    export.export_encoder(model, tmp_path / "encoder", formats=["keras"])
    network = keras.Sequential(
        [standins.encoder(), keras.layers.Dense(2, "softmax")]
    )
    network.build((None, 8, 8, 1))
    classification.write_classifier(
        model, network, tmp_path / "classifier", ["a", "b"]
    )
    whole = classification.load_classifier(tmp_path / "classifier")
    found = shipping.measured(
        {"simclr": model, "mine": whole},
        {"mine": tmp_path / "classifier" / "classifier.keras"},
    )
    ours, theirs = found["networks"]
    assert [x["features"] for x in (ours, theirs)] == ["simclr", "mine"]
    assert ours["parameters"] == model.encoder.count_params() == 9 * 6 + 6 + 24
    assert theirs["parameters"] == whole.count_params() == 9 * 6 + 6 + 14
    paths = "encoder/encoder.keras", "classifier/classifier.keras"
    for each, path in zip((ours, theirs), paths, strict=True):
        assert each["bytes"] == (tmp_path / path).stat().st_size
        assert 0 < each["milliseconds"] < 1_000
    assert found["how"].startswith("ms: medians, batches of 8 on ")


class Halved(keras.layers.Layer):
    def call(self, images, training=True, seed=None):
        return images / 2


@pytest.mark.filterwarnings("ignore:These layers of `augmentation` change")
def test_what_cannot_be_exported_has_no_size():
    model = simclr.SimCLRModel(standins.encoder(), augmentation=Halved())
    (found,) = shipping.measured({"simclr": model})["networks"]
    assert found["bytes"] is None
    assert found["parameters"] == model.encoder.count_params()
    row = standins.row(labels="all")
    line = shipping.table([row], {"networks": [found], "how": "x"})[1]
    assert line.split()[:4] == ["simclr,", "linear", "all", "90.0"]


def test_times_are_medians_taken_in_turns(monkeypatch):
    """Of a clock that each network takes its own time of, and one hiccup."""
    calls, clock = [], [0.0]

    def network(name, seconds):
        def call(x, training):
            assert not training
            calls.append(name)
            clock[0] += 100.0 if len(calls) == 9 else seconds
            return x

        call.input_shape, call.inputs = (None, 8, 8, 1), None
        return call

    monkeypatch.setattr(shipping.tf, "function", lambda f: f)
    monkeypatch.setattr(
        shipping,
        "time",
        types.SimpleNamespace(perf_counter=lambda: clock[0]),
    )
    monkeypatch.setattr(shipping, "_SECONDS", 1e9)
    found = shipping._milliseconds([network("a", 0.25), network("b", 2.0)])
    assert found == [0.25e3 / 8, 2e3 / 8]
    assert calls[:2] == ["a", "b"]  # They trace.
    assert calls[2:] == ["a", "b"] * 20


@pytest.mark.parametrize("amount", ["all", 10])
def test_table_shows_the_most_labels_and_those_of_classifiers(amount):
    costs = {"parameters": 4_903_242, "milliseconds": 12.3456, "bytes": 123_456}
    names = ["simclr", "teacher"]
    found = {"networks": [{"features": x, **costs} for x in names], "how": "ms"}
    rows = [
        standins.row(labels=1),
        standins.row(labels=amount),
        standins.row(labels=amount, features="pixels"),
        standins.row(labels=amount, features="untrained", probe="scratch"),
        standins.row(labels="own", features="teacher", probe="classifier"),
    ]
    head, *lines, last = shipping.table(rows, found)
    assert [x.split("  ")[0] for x in lines] == [
        "simclr, linear",
        "untrained, scratch",
        "teacher, classifier",
    ]
    assert {len(x) for x in (head, *lines)} == {94}
    assert lines[2].split()[2:] == [
        "own",
        "90.0",
        "(85.0-95.0)",
        "4,903,242",
        "12.346",
        "0.12",
    ]
    assert last == "ms; own: the labels that it was trained with."
