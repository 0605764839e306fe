import itertools
import json
import shutil

import keras
import numpy as np
import pytest
from helpers import standins

import keras_simclr as simclr
import keras_simclr_cli as cli
from keras_simclr import (
    checkpoints,
    classification,
    copies,
    distillation,
    export,
    imitation,
    runs,
    teaching,
)

IMAGES, LABELS = standins.labelled_images()


def test_flags_of_labels_are_those_of_labels():
    recipe = teaching.DistillationRecipe(teacher="a")
    assert not {"labelled", "label_weight", "views"} & recipe.values.keys()
    recipe = teaching.DistillationRecipe(teacher="a", labelled="b")
    assert recipe.values["labelled"] == "b"
    assert recipe.values["label_weight"] == distillation.LABEL_WEIGHT
    table = cli._COMMANDS["distill"][1]
    assert table["label_weight"].default == distillation.LABEL_WEIGHT
    with pytest.raises(ValueError, match="must be left out without `labelled"):
        teaching.DistillationRecipe(teacher="a", label_weight=0.9)


TINY = ["--epochs=1", "--batch_size=8", "--precision=float32", "--depth=10"]


@pytest.fixture
def _small(monkeypatch):
    standins.use(monkeypatch)


@pytest.fixture
def places(tmp_path):
    """Arrays, a run, and a classifier whose first class is dark."""
    images = (255 * np.repeat(IMAGES, 3, axis=-1)).astype("uint8")
    np.savez(tmp_path / "data.npz", images=images, labels=LABELS)
    encoder = standins.encoder(shape=(8, 8, 3))
    model = simclr.SimCLRModel(
        encoder, augmentation=simclr.SimCLRAugmentation(8)
    )
    model.compile()
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "model.keras")
    network = keras.Sequential([encoder, keras.layers.Dense(2, "softmax")])
    network.build((None, 8, 8, 3))
    classification.write_classifier(
        model, network, tmp_path / "classifier", ["0", "1"]
    )
    return tmp_path


def command(places, teacher, *others, out="out"):
    has_start = any(x.startswith("--start_from") for x in others)
    return cli.main(
        [
            "distill",
            f"--teacher={places / teacher}",
            f"--data={places / 'data.npz'}",
            f"--output_dir={places / out}",
            *(x for x in TINY if not has_start or not x.startswith("--depth")),
            *others,
        ]
    )


@pytest.mark.usefixtures("_small", "eagerly")
class TestCommand:
    def test_a_classifier_makes_a_classifier(self, places, capsys):
        tests = f"--test_data={places / 'data.npz'}"
        assert command(places, "classifier", tests) == 0
        text = capsys.readouterr().out
        assert "To test on: 24 images of 2 classes" in text
        assert "On images to test on: accuracy " in text
        out = places / "out"
        summary = json.loads((out / "summary.json").read_text())
        assert summary["command"] == "distill"
        assert summary["teacher"]["name"] == str(places / "classifier")
        assert summary["test"].keys() == {"accuracy", "teacher_accuracy"}
        log = (out / "log.csv").read_text().splitlines()
        assert {"agreement", "loss"} < {*log[0].split(",")}
        assert classification.class_names(out / "classifier") == ("0", "1")
        model = runs.load_model(out)
        classifier = classification.load_classifier(out / "classifier")
        logits = model.projection_head(model(IMAGES.repeat(3, axis=-1)))
        np.testing.assert_allclose(
            classifier(IMAGES.repeat(3, axis=-1)),
            keras.ops.softmax(logits),
            atol=1e-5,
        )
        # It is tested beside its teacher.
        both = f"{places / 'classifier'},{out / 'classifier'}"
        data = f"--data={places / 'data.npz'}", tests, f"--encoders={both}"
        few = "--probes=knn", "--labels=all"
        assert cli.main(["evaluate", f"--run_dir={out}", *data, *few]) == 0
        text = capsys.readouterr().out
        assert f"{out / 'classifier'}, classifier " in text
        evaluated = json.loads((out / "summary.json").read_text())
        own = [x for x in evaluated["rows"] if x["labels"] == "own"]
        of_both = [summary["test"][x] for x in ("teacher_accuracy", "accuracy")]
        assert [x["accuracy"] for x in own] == of_both
        # Its flags are those of the command, and it is finished.
        flags = f"--flagfile={out / 'flags.txt'}"
        assert cli.main(["distill", flags]) == 1
        assert "whose run is finished" in capsys.readouterr().err
        again = places / "again"
        assert cli.main(["distill", flags, f"--output_dir={again}"]) == 0
        for ours, theirs in zip(
            runs.load_model(again).weights, model.weights, strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)

    def test_a_classifier_that_was_not_written_yet_is(
        self, places, monkeypatch
    ):
        def fail(*_):
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(classification, "write_classifier", fail)
            assert command(places, "classifier") == 1
        assert not (places / "out" / "classifier").exists()
        assert command(places, "classifier") == 0
        assert (places / "out/classifier/saved_model").is_dir()

    def test_a_run_goes_on_with_its_teacher_alone(self, places, monkeypatch):
        save, out = checkpoints.save_model, places / "out"

        def ctrl_c(*args):
            save(*args)
            raise KeyboardInterrupt

        longer = "--epochs=2"
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save_model", ctrl_c)
            assert command(places, "classifier", longer) == 130
        assert not (out / "classifier").exists()
        shutil.copytree(places / "classifier", places / "kept")
        network = classification.load_classifier(places / "classifier")
        network.set_weights([x + 1 for x in network.get_weights()])
        network.save(places / "classifier" / "classifier.keras")
        assert command(places, "classifier", longer) == 1
        shutil.copytree(
            places / "kept", places / "classifier", dirs_exist_ok=True
        )
        assert command(places, "classifier", longer) == 0
        assert (out / "classifier").is_dir()

    def test_true_classes_are_learnt_too(self, places, monkeypatch, capsys):
        """As if not interrupted, where it goes on without saying it again."""
        monkeypatch.setattr(classification, "write_classifier", lambda *_: 0)
        arrays = np.load(places / "data.npz")

        def write(count):
            few = {name: array[:count] for name, array in arrays.items()}
            np.savez(places / "labelled.npz", **few)

        write(5)
        longer = "--epochs=3"
        labels = f"--labelled={places / 'labelled.npz'}", "--label_weight=0.4"
        assert command(places, "classifier", longer, *labels) == 0
        said = capsys.readouterr().out
        assert "Labelled: 5 images of 2 classes: 0 (3), 1 (2)." in said
        expected = runs.load_model(places / "out").get_weights()
        flags = runs.recorded_flags(places / "out")
        assert flags["label_weight"] == "0.4"
        step, steps = imitation.Distiller.train_step, itertools.count()

        def interrupted(model, element):
            if next(steps) == 4:
                raise KeyboardInterrupt
            assert element["groups"].shape == [9]
            return step(model, element)

        with monkeypatch.context() as patch:
            patch.setattr(imitation.Distiller, "train_step", interrupted)
            code = command(places, "classifier", longer, *labels, out="two")
            assert code == 130
        write(6)
        capsys.readouterr()
        assert command(places, "classifier", longer, out="two") == 1
        assert "with the labelled images that it began" in (
            capsys.readouterr().err
        )
        flag = "--accept_changed_data"
        shutil.copytree(places / "two", places / "changed")
        assert command(places, "classifier", longer, flag, out="changed") == 0
        write(5)
        assert command(places, "classifier", longer, out="two") == 0
        assert "once more" not in capsys.readouterr().err
        for ours, theirs in zip(
            runs.load_model(places / "two").get_weights(), expected, strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)

    def test_labels_of_others_are_refused_at_once(self, places, capsys):
        arrays = dict(np.load(places / "data.npz"))
        np.savez(places / "more.npz", **{**arrays, "labels": LABELS + 1})
        labels = f"--labelled={places / 'more.npz'}"
        assert command(places, "classifier", labels) == 1
        assert "Received: 2 in `labelled`, 0, 1 of the te" in (
            capsys.readouterr().err
        )
        assert command(places, "run", labels) == 1
        assert "`labelled` is for a classifier. Received: the teacher " in (
            capsys.readouterr().err
        )
        assert not (places / "out").exists()

    def test_an_encoder_makes_an_encoder(self, places, capsys):
        assert command(places, "run") == 0
        out = places / "out"
        assert not (out / "classifier").exists()
        arguments = ["export", f"--run_dir={out}", "--formats=keras"]
        encoder = f"--output_dir={places / 'encoder'}"
        assert cli.main([*arguments, encoder]) == 0
        card = (places / "encoder" / "README.md").read_text()
        assert "keras-simclr distill --" in card
        digest = copies.weights_digest(runs.load_model(places / "run").encoder)
        assert f"An encoder taught by run, of the weights {digest}" in card
        start = f"--start_from={places / 'run'}"
        assert command(places, "run", start, out="gone_on") == 0
        assert (places / "gone_on" / "start.keras").is_file()
        tests = f"--test_data={places / 'data.npz'}"
        assert command(places, "run", tests, out="third") == 1
        assert "`test_data` is for a classifier" in capsys.readouterr().err

    def test_classifiers_are_exported(self, places, capsys):
        arguments = ["export", f"--model={places / 'classifier'}"]
        app = places / "app"
        formats = "--formats=keras,litert_int8"
        assert cli.main([*arguments, f"--output_dir={app}", formats]) == 0
        assert sorted(x.name for x in app.iterdir()) == [
            "class_names.json",
            "classifier.keras",
            "classifier_int8.tflite",
            "flags.txt",
        ]
        images = IMAGES.repeat(3, axis=-1)[:1]
        load = export.EXPORTS["litert_int8"].load
        found = load(app / "classifier_int8.tflite")(images)
        expected = classification.load_classifier(app)(images)
        np.testing.assert_allclose(found, expected, atol=0.02)
        hub = [f"--output_dir={places / 'hub'}", "--formats=hub"]
        assert cli.main([*arguments, *hub]) == 1
        assert "are all but hub" in capsys.readouterr().err
