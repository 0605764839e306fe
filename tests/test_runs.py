import dataclasses
import json
import shutil
import socket
import subprocess
import sys

import keras
import numpy as np
import PIL.Image
import pytest
from helpers import run_logs, standins
from helpers.replicas import mirrored

import keras_simclr as simclr
from keras_simclr import (
    _files,
    callbacks,
    copies,
    flag_texts,
    logs,
    recipe,
    run_accounts,
    runs,
    scanning,
)

pytestmark = pytest.mark.usefixtures("eagerly")


def tiny_model(run_eagerly=True):
    """A model to train. Few steps are faster without a graph."""
    return standins.model_to_train(run_eagerly=run_eagerly)


@pytest.fixture
def dataset():
    images = np.random.default_rng(0).random((8, 8, 8, 1), "float32")
    return simclr.dataset_from_arrays(images, batch_size=4)


def summary_of(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def test_run_directory_holds_all_that_a_run_was(tmp_path, dataset):
    model, run_dir = tiny_model(), tmp_path / "run"
    epochs = runs.pretrain(
        model, dataset, run_dir, epochs=2, flags="--a=1\n", summary={"b": 2}
    )
    assert epochs == 2
    assert sorted(path.name for path in run_dir.iterdir()) == [
        "checkpoints.json",
        "epoch-000001.weights.h5",
        "epoch-000002.weights.h5",
        "flags.txt",
        "log.csv",
        "model.keras",
        "summary.json",
    ]
    assert (run_dir / "flags.txt").read_text() == "--a=1\n"
    lines = (run_dir / "log.csv").read_text().splitlines()
    assert lines[0] == (
        "epoch,contrastive_accuracy,images_per_second,learning_rate,loss,"
        "seconds"
    )
    assert len(lines) == 3
    assert summary_of(run_dir) == {
        "b": 2,
        "epochs_trained": 2,
        "steps_trained": 4,
        "finished": True,
        "weights": copies.weights_digest(model),
    }
    loaded = runs.load_model(run_dir)
    for ours, theirs in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert int(loaded.optimizer.iterations) == 4


def interrupt(model, after):
    """Has Ctrl-C come after that many steps."""
    step = model.train_step

    def interrupted(element):
        if int(model.optimizer.iterations) == after:
            raise KeyboardInterrupt
        return step(element)

    model.train_step = interrupted


@pytest.mark.fault(50)
def test_interrupted_run_keeps_the_model_as_it_is_then(tmp_path, dataset):
    model = tiny_model()
    interrupt(model, after=3)
    epochs = runs.pretrain(model, dataset, tmp_path / "run", epochs=5)
    assert epochs == 1
    assert summary_of(tmp_path / "run") == {
        "epochs_trained": 1,
        "steps_trained": 3,
        "finished": False,
        "weights": copies.weights_digest(runs.load_model(tmp_path / "run")),
    }
    loaded = runs.load_model(tmp_path / "run")
    assert int(loaded.optimizer.iterations) == 3


def numbered(count=24):
    """Whose order matters: every batch is another."""
    images = np.random.default_rng(0).random((count, 8, 8, 1), "float32")
    return simclr.dataset_from_arrays(images, batch_size=4, seed=5)


@pytest.mark.fault(51)
def test_resumed_run_equals_one_that_was_not_interrupted(tmp_path):
    whole = tiny_model()
    runs.pretrain(whole, numbered(), tmp_path / "whole", epochs=4)
    for after in (8, 20):
        model = tiny_model()
        interrupt(model, after)
        epochs = runs.pretrain(model, numbered(), tmp_path / "run", epochs=4)
        assert epochs == after // 6
    resumed = tiny_model()
    epochs = runs.pretrain(resumed, numbered(), tmp_path / "run", epochs=4)
    assert epochs == 4
    for ours, right in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), right.numpy())
    ours, right = (tmp_path / x / "log.csv" for x in ("run", "whole"))
    assert run_logs.untimed(ours) == run_logs.untimed(right)
    kept = sorted(path.name for path in (tmp_path / "run").glob("epoch-*"))
    assert kept == ["epoch-000003.weights.h5", "epoch-000004.weights.h5"]


@pytest.mark.fault(52)
@pytest.mark.usefixtures("in_float64")
def test_run_goes_on_with_another_number_of_replicas(tmp_path):
    whole = tiny_model()
    runs.pretrain(whole, numbered(), tmp_path / "whole", epochs=2)
    model = tiny_model()
    interrupt(model, after=8)
    runs.pretrain(model, numbered(), tmp_path / "run", epochs=2)
    with mirrored(2).scope():
        resumed = tiny_model(run_eagerly=False)
    runs.pretrain(resumed, numbered(), tmp_path / "run", epochs=2)
    assert resumed.optimizer.iterations.numpy() == 12
    for ours, right in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_allclose(ours.numpy(), right.numpy(), atol=1e-9)


@pytest.mark.fault(51)
def test_steps_per_epoch_go_on_where_they_were(tmp_path):
    def fit(model, **kwargs):
        dataset = numbered().repeat()
        model.fit(dataset, steps_per_epoch=4, verbose=0, **kwargs)

    whole, model = tiny_model(), tiny_model()
    fit(whole, epochs=3)
    fit(model, epochs=1, callbacks=[callbacks.Checkpoints(tmp_path / "run")])
    resumed = tiny_model()
    assert callbacks.restore(resumed, tmp_path / "run") == 1
    fit(resumed, epochs=3, initial_epoch=1)
    for ours, right in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), right.numpy())


@pytest.mark.fault(49)
def test_run_killed_at_its_very_end_is_finished(tmp_path):
    whole = tiny_model()
    runs.pretrain(whole, numbered(), tmp_path / "run", epochs=2)
    runs.update_summary(tmp_path / "run", {"finished": False})
    log = tmp_path / "run" / "log.csv"
    content = log.read_bytes()
    log.write_bytes(content + content.splitlines(keepends=True)[-1])  # Twice.
    epochs = runs.pretrain(tiny_model(), numbered(), tmp_path / "run", epochs=2)
    assert epochs == 2
    assert summary_of(tmp_path / "run")["finished"]
    assert log.read_bytes() == content


@pytest.mark.fault(56)
def test_run_goes_on_with_its_own_flags_only(tmp_path, dataset):
    model = tiny_model()
    interrupt(model, after=3)
    flags = "--epochs=5\n--seed=0\n"
    runs.pretrain(model, dataset, tmp_path / "run", epochs=5, flags=flags)
    with pytest.raises(FileExistsError) as error:
        runs.check_can_run(
            tmp_path / "run", "--epochs=6\n--seed=0\n--strategy=mirrored\n"
        )
    assert str(error.value) == (
        "A run goes on with the flags that it began with. "
        f"Received: --epochs=6 for {str(tmp_path / 'run')!r}, which has "
        "--epochs=5"
    )


def test_channels_of_an_unfinished_run_stay(tmp_path, dataset):
    model = tiny_model()
    interrupt(model, after=3)
    run = tmp_path / "run"
    flags = "--bits=16\n--channels=1\n--data=a\n"
    runs.pretrain(model, dataset, run, epochs=5, flags=flags)
    runs.check_can_run(run, "--channels=1\n--data=b\n", True)
    with pytest.raises(FileExistsError, match="Received: no flag for"):
        runs.check_can_run(run, "--bits=16\n--data=a\n", True)


def test_data_are_as_the_encoder_saw_them(tmp_path):
    (tmp_path / "flags.txt").write_text("--bits=16\n")
    data = recipe.Data(data="photos")
    seen = runs.as_seen(data, tmp_path, 1)
    assert (seen.channels, seen.bits) == (1, 16)
    assert runs.as_seen(seen, tmp_path, 1) == seen
    assert runs.as_seen(data, tmp_path / "other", 3).bits == 8
    with pytest.raises(ValueError) as error:
        runs.as_seen(dataclasses.replace(data, channels=3), tmp_path, 1)
    assert str(error.value) == (
        "`channels` must be what the encoder saw in training. Received: "
        "channels=3, where it saw 1. Leave out --channels"
    )
    with pytest.raises(ValueError, match="bits=8, where it saw 16"):
        runs.as_seen(dataclasses.replace(data, bits=8), tmp_path, 1)


@pytest.mark.fault(60)
def test_two_processes_do_not_train_in_one_directory(tmp_path, dataset):
    """They would write over each other's files."""
    model, run_dir = tiny_model(), tmp_path / "run"
    interrupt(model, after=3)
    runs.pretrain(model, dataset, run_dir, epochs=2)
    before = {path: path.read_bytes() for path in run_dir.iterdir()}
    code = (  # Without the package around it, which takes seconds to import.
        "import runpy, sys\n"
        "locked = runpy.run_path(sys.argv[1])['locked']\n"
        "with locked(sys.argv[2]):\n"
        "    print(flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, _files.__file__, run_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline()
        with pytest.raises(OSError) as error:
            runs.pretrain(tiny_model(), dataset, run_dir, epochs=2)
        other.kill()
    assert str(error.value).endswith(
        f"Received: {str(run_dir)!r}, where process {other.pid} on "
        f"{socket.gethostname()} is at work. Wait until it ends, or choose "
        "another directory"
    )
    after = {path: path.read_bytes() for path in run_dir.iterdir()}
    assert after.pop(run_dir / _files.LOCK)
    assert after == before
    assert runs.pretrain(tiny_model(), dataset, run_dir, epochs=2) == 2


def test_finished_run_is_left_alone(tmp_path, dataset):
    runs.pretrain(tiny_model(), dataset, tmp_path / "run", epochs=1)
    with pytest.raises(FileExistsError) as error:
        runs.pretrain(tiny_model(), dataset, tmp_path / "run", epochs=1)
    assert str(error.value) == (
        "The output directory must be new, empty, or hold an unfinished run. "
        f"Received: {str(tmp_path / 'run')!r}, whose run is finished. "
        "--more_epochs=N goes on with it"
    )


@pytest.mark.fault(57)
def test_run_never_overwrites(tmp_path, dataset):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="new or empty"):
        runs.pretrain(tiny_model(), dataset, tmp_path, epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.fault(49)
def test_run_killed_while_it_wrote_its_flags_goes_on(tmp_path, dataset):
    (tmp_path / "staged-flags.txt").write_text("--epo")
    epochs = runs.pretrain(
        tiny_model(), dataset, tmp_path, epochs=1, flags="--epochs=1\n"
    )
    assert epochs == 1
    assert (tmp_path / "flags.txt").read_text() == "--epochs=1\n"
    assert not (tmp_path / "staged-flags.txt").exists()


@pytest.mark.fault(57)
def test_file_beside_staged_flags_is_not_ours(tmp_path):
    for name in ("staged-flags.txt", "thesis.tex"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match="new or empty"):
        runs.check_can_run(tmp_path)


def cut(path):
    """Keeps the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.fault(55)
@pytest.mark.usefixtures("in_graphs")
def test_damaged_checkpoint_is_passed_over(tmp_path):
    whole = tiny_model()
    runs.pretrain(whole, numbered(8), tmp_path / "whole", epochs=3)
    run_dir, model = tmp_path / "run", tiny_model()
    interrupt(model, after=5)
    runs.pretrain(model, numbered(8), run_dir, epochs=3)
    last = run_dir / "epoch-000002.weights.h5"
    cut(last)
    resumed = tiny_model()
    with pytest.warns(UserWarning) as record:
        epochs = runs.pretrain(resumed, numbered(8), run_dir, epochs=3)
    (warning,) = [x for x in record if x.category is UserWarning]
    assert str(warning.message).startswith(
        f"The checkpoint {str(last)!r} cannot be read and is passed over: its "
        "content is not what was written"
    )
    assert epochs == 3
    for ours, right in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), right.numpy())
    ours, right = (tmp_path / x / "log.csv" for x in ("run", "whole"))
    assert run_logs.untimed(ours) == run_logs.untimed(right)


@pytest.mark.fault(55)
@pytest.mark.filterwarnings("ignore:The checkpoint ")
def test_run_without_a_readable_checkpoint_is_refused(tmp_path, dataset):
    model = tiny_model()
    keeper = callbacks.Checkpoints(tmp_path)
    model.fit(dataset, epochs=2, callbacks=[keeper], verbose=0)
    for path in tmp_path.glob("epoch-*"):
        cut(path)
    with pytest.raises(ValueError) as error:
        callbacks.restore(tiny_model(), tmp_path)
    assert str(error.value) == (
        "A run goes on from a checkpoint that can be read. Received: "
        f"{str(tmp_path)!r}, where none can. Begin anew in another directory."
    )


@pytest.mark.fault(53)
def test_failed_save_leaves_the_model_before_it(tmp_path, monkeypatch):
    model = tiny_model()
    runs.save_model(model, tmp_path)
    content = (tmp_path / "model.keras").read_bytes()

    def full_disk(path):
        path.write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(model, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        runs.save_model(model, tmp_path)
    assert (tmp_path / "model.keras").read_bytes() == content


def test_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        runs.load_model(tmp_path)
    assert str(error.value) == (
        "A run directory must hold model.keras, written by `pretrain`. "
        f"Received: {str(tmp_path)!r}"
    )


def test_summary_keeps_what_it_had(tmp_path):
    runs.update_summary(tmp_path, {"a": 1, "b": 2})
    runs.update_summary(tmp_path, {"b": 3})
    assert summary_of(tmp_path) == {"a": 1, "b": 3}


def evaluate(run_dir, model=None):
    """What the command `evaluate` does: its rows, stored."""
    images, labels = standins.labelled_images()
    result = simclr.evaluate(
        model or runs.load_model(run_dir),
        (images, labels),
        probes=["knn"],
        labels=[4],
        draws=2,
    )
    runs.update_summary(run_dir, result.summary)
    return list(result.rows)


RESULTS = {"rows", "gains", "evaluation"}


def test_rows_of_earlier_weights_are_set_aside(tmp_path, dataset):
    run_dir, model = tmp_path / "run", tiny_model()
    interrupt(model, after=3)
    runs.pretrain(model, dataset, run_dir, epochs=3)
    evaluate(run_dir)
    earlier = {name: summary_of(run_dir)[name] for name in RESULTS}
    assert runs.about(run_dir)["rows"] == earlier["rows"]
    runs.pretrain(tiny_model(), dataset, run_dir, epochs=3)
    summary = summary_of(run_dir)
    assert not RESULTS & summary.keys()
    assert summary["earlier_evaluations"] == [earlier]
    about = runs.about(run_dir)
    assert not RESULTS & about.keys()
    assert about["epochs_trained"] == 3
    evaluate(run_dir)
    assert runs.about(run_dir)["evaluation"]["weights"] == about["weights"]
    assert about["weights"] != earlier["evaluation"]["weights"]


def test_rows_are_not_shown_while_training_goes_on(tmp_path, dataset):
    """Which may end without a word."""
    run_dir, model = tmp_path / "run", tiny_model()
    interrupt(model, after=2)
    runs.pretrain(model, dataset, run_dir, epochs=2)
    evaluate(run_dir)
    resumed, seen = tiny_model(), []
    step = resumed.train_step

    def watched(element):
        seen.append(summary_of(run_dir))
        return step(element)

    resumed.train_step = watched
    runs.pretrain(resumed, dataset, run_dir, epochs=2)
    assert len(seen) == 2
    assert not (RESULTS | {"epochs_trained", "weights"}) & seen[0].keys()


def test_rows_stay_where_nothing_was_trained(tmp_path, dataset):
    run_dir = tmp_path / "run"
    runs.pretrain(tiny_model(), dataset, run_dir, epochs=1)
    runs.update_summary(run_dir, {"finished": False})
    evaluate(run_dir)
    before = summary_of(run_dir)
    runs.pretrain(tiny_model(), dataset, run_dir, epochs=1)
    assert summary_of(run_dir) == {**before, "finished": True}


@pytest.mark.parametrize(
    "change", ["other file", "more training", "version 0.1"]
)
def test_results_of_other_weights_are_not_shown(change, tmp_path, dataset):
    run_dir = tmp_path / "run"
    runs.pretrain(tiny_model(), dataset, run_dir, epochs=1)
    evaluate(run_dir)
    if change == "version 0.1":
        summary = summary_of(run_dir)
        del summary["weights"], summary["evaluation"]["weights"]
        (run_dir / "summary.json").write_text(json.dumps(summary))
    else:
        model = runs.load_model(run_dir)
        weights = model.encoder.get_weights()
        if change == "more training":
            model.fit(dataset, verbose=0)
        else:
            model.encoder.set_weights([x + 1.0 for x in weights])
        runs.save_model(model, run_dir)
    with pytest.warns(UserWarning, match="they are left out") as record:
        about = runs.about(run_dir)
    text = str(record[-1].message)
    assert "epochs_trained, evaluation, gains" in text
    # Version 0.1 may be right of the rest; another file is of another recipe.
    is_unknown = change == "version 0.1"
    assert ("recipe" in text) is not is_unknown
    assert about.keys() == ({"recipe"} if is_unknown else set())


def test_evaluation_that_ends_after_more_training_is_of_its_weights(
    tmp_path, dataset
):
    run_dir, model = tmp_path / "run", tiny_model()
    interrupt(model, after=2)
    runs.pretrain(model, dataset, run_dir, epochs=2)
    loaded = runs.load_model(run_dir)
    runs.pretrain(tiny_model(), dataset, run_dir, epochs=2)
    evaluate(run_dir, loaded)
    with pytest.warns(UserWarning, match="evaluation, gains, rows of other"):
        about = runs.about(run_dir)
    assert about["epochs_trained"] == 2
    assert not RESULTS & about.keys()


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Function that starts or resumes a run of the command line's kind.

    It `stops` before the second epoch, or the one that is given, from 0.
    """
    standins.use(monkeypatch)
    stop = {}
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), "uint8")
    np.savez(path, images=images)
    given = {"epochs": 2, "batch_size": 8, "precision": "float32"}

    def start(
        stops=False,
        accept_changed_data=False,
        more_epochs=None,
        doctor=False,
        report=lambda text: None,
        **changes,
    ):
        values = given | changes
        where = {"data": str(path), "split": "train"}
        where |= {k: values.pop(k) for k in where if k in values}
        output_dir = values.pop("output_dir", tmp_path / "run")
        stop["epoch"] = int(stops)
        with monkeypatch.context() as patch:
            if stops:
                patch.setattr(logs.Log, "on_epoch_begin", ctrl_c)
            return runs.carry_out(
                recipe.Recipe(**values),
                recipe.Data(**where),
                output_dir,
                given=["data", "output_dir", *(x for x in values if values[x])]
                + ["split"] * (where["split"] != "train"),
                accept_changed_data=accept_changed_data,
                more_epochs=more_epochs,
                doctor=doctor,
                report=report,
            )

    def ctrl_c(self, epoch, logs=None):
        if epoch == stop["epoch"]:
            raise KeyboardInterrupt

    return start


def flags_of(run_dir):
    return runs.recorded_flags(run_dir)


def rewrite_flags(run_dir, **changes):
    """As if another version, with other defaults, had begun the run."""
    flags = {**flags_of(run_dir), **changes}
    (run_dir / "flags.txt").write_text(flag_texts.as_flags(flags))
    summary = summary_of(run_dir)
    summary["flags"]["values"].update(changes)
    (run_dir / "summary.json").write_text(json.dumps(summary))


def test_run_records_its_version_and_all_values(start, tmp_path):
    start()
    summary = summary_of(tmp_path / "run")
    assert summary["keras_simclr"] == simclr.__version__
    assert summary["flags"]["given"] == sorted(
        ["data", "output_dir", "epochs", "batch_size", "precision"]
    )
    values = summary["flags"]["values"]
    fields = {**recipe.Recipe().values, **vars(recipe.Data(data=""))}
    of_others = {"rate", "seconds", "window", "stride", "label", "columns"}
    assert values.keys() == {*fields, "output_dir"} - of_others
    assert (values["manifest"], values["epochs"]) == (None, 2)


def test_flag_that_a_run_does_not_know_has_its_default(start, tmp_path):
    assert start(stops=True).epochs == 1
    run_dir = tmp_path / "run"
    lines = (run_dir / "flags.txt").read_text().splitlines(keepends=True)
    old = [line for line in lines if not line.startswith("--color_rate")]
    (run_dir / "flags.txt").write_text("".join(old))
    summary = summary_of(run_dir)
    del summary["flags"]  # Version 0.1 did not write it.
    (run_dir / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(FileExistsError) as error:
        start(color_rate=0.0)
    assert str(error.value) == (
        "A run goes on with the flags that it began with. "
        f"Received: --color_rate=0.0 for {str(run_dir)!r}, which has "
        "--color_rate=0.8"
    )
    assert start().epochs == 2
    assert flags_of(run_dir)["color_rate"] == "0.8"


def test_absence_of_a_flag_means_what_it_meant(start, tmp_path):
    start(stops=True)
    rewrite_flags(tmp_path / "run", temperature=0.7, manifest=None)
    run = start()
    assert run.recipe.temperature == run.model.loss.temperature == 0.7
    assert flags_of(tmp_path / "run")["temperature"] == "0.7"


def test_flag_that_was_given_must_be_given_again(start, tmp_path):
    start(stops=True, seed=3)
    with pytest.raises(FileExistsError) as error:
        start()
    assert str(error.value) == (
        "A run goes on with the flags that it began with. "
        f"Received: --seed=0 for {str(tmp_path / 'run')!r}, which has --seed=3"
    )
    # What was not given then may be given now, if it says the same.
    run = start(seed=3, temperature=0.2)
    assert run.epochs == 2
    given = summary_of(tmp_path / "run")["flags"]["given"]
    assert "seed" in given
    assert "temperature" not in given


def test_flags_that_are_on_or_off_are_recorded(tmp_path):
    (tmp_path / "flags.txt").write_text("--nodoctor\n--report\n--seed=3\n")
    found = {"doctor": "false", "report": "true", "seed": "3"}
    assert flags_of(tmp_path) == found
    assert runs.about(tmp_path)["recipe"] == found
    same = "--doctor=false\n--report=true\n--seed=3\n"
    assert runs.check_can_run(tmp_path, same) is None
    with pytest.raises(FileExistsError) as error:
        runs.check_can_run(
            tmp_path, same.replace("report=true", "report=false")
        )
    assert str(error.value) == (
        "A run goes on with the flags that it began with. "
        f"Received: --report=false for {str(tmp_path)!r}, which has "
        "--report=true"
    )


@pytest.mark.fault(55)
@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "\u00e9"])
def test_broken_summary_is_refused_with_the_cure(text, tmp_path):
    path = tmp_path / "summary.json"
    path.write_bytes(text.encode("latin-1"))
    for act in (
        lambda: runs.read_summary(tmp_path),
        lambda: runs.update_summary(tmp_path, {"a": 1}),
        lambda: runs.about(tmp_path),
    ):
        with pytest.raises(ValueError) as error:
            act()
        assert str(error.value).startswith(
            "summary.json must be the JSON object that was written there. "
            f"Received: {str(path)!r} ("
        )
    assert path.read_bytes() == text.encode("latin-1")


def diverge(model, after):
    """Has the weights become NaN in the step after so many."""
    step = model.train_step

    def diverged(element):
        results = step(element)
        if int(model.optimizer.iterations) == after + 1:
            weight = model.encoder.weights[0]
            weight.assign(np.nan * weight)
        return results

    model.train_step = diverged


@pytest.mark.fault(58, 59)
@pytest.mark.filterwarnings("ignore:Weights must be finite")
@pytest.mark.parametrize("after", [1, 2, 5])
def test_run_that_diverges_keeps_what_was_good(after, tmp_path, dataset):
    model, run_dir = tiny_model(), tmp_path / "run"
    diverge(model, after)
    with pytest.raises(ValueError):
        runs.pretrain(model, dataset, run_dir, epochs=3)
    epochs, summary = after // 2, summary_of(run_dir)
    weights = summary.pop("weights", None)
    assert summary == {
        "epochs_trained": epochs,
        "steps_trained": 2 * epochs,
        "finished": False,
    }
    assert len(list(run_dir.glob("epoch-*"))) == epochs
    if epochs:
        kept = runs.load_model(run_dir)
        assert int(kept.optimizer.iterations) == 2 * epochs
        assert copies.weights_digest(kept) == weights
    else:
        assert not (run_dir / "model.keras").exists()


@pytest.mark.fault(58)
@pytest.mark.filterwarnings("ignore:Weights must be finite")
def test_interrupted_run_that_has_diverged_keeps_what_was_good(
    tmp_path, dataset
):
    model, run_dir = tiny_model(), tmp_path / "run"
    interrupt(model, after=3)
    diverge(model, after=2)
    with pytest.raises(ValueError):
        runs.pretrain(model, dataset, run_dir, epochs=3)
    assert int(runs.load_model(run_dir).optimizer.iterations) == 2
    assert summary_of(run_dir)["steps_trained"] == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_model_that_is_not_finite_is_refused(value, tmp_path):
    model = tiny_model()
    weight = model.projection_head.weights[0]
    weight.assign(np.full(weight.shape, value))
    runs.save_model(model, tmp_path)
    with pytest.raises(ValueError) as error:
        runs.load_model(tmp_path)
    found = "NaN" if np.isnan(value) else "infinity"
    assert str(error.value).startswith(
        f"Weights must be finite. Received: {found} in `{weight.path}` of "
    )


@pytest.mark.fault(54)
def test_run_that_cannot_be_written_is_refused_before_it_begins(
    start, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    monkeypatch.setattr(recipe.Recipe, "open", None)  # It is not come to that.
    with pytest.raises(OSError, match="must be one that can be written"):
        start()
    assert not (tmp_path / "run").exists()


def change_images(tmp_path, count=24):
    images = np.random.default_rng(1).integers(0, 256, (count, 8, 8, 1))
    np.savez(tmp_path / "images.npz", images=images.astype("uint8"))


@pytest.mark.fault(56)
@pytest.mark.parametrize("count", [16, 24])
def test_run_does_not_go_on_with_other_data(count, start, tmp_path):
    start(stops=True)
    before = summary_of(tmp_path / "run")
    change_images(tmp_path, count)
    with pytest.raises(ValueError) as error:
        start()
    text = str(error.value)
    assert text.startswith("An unfinished run goes on with the data that it ")
    assert f"sha256 {before['data']['sha256']}" in text
    assert ("images_per_epoch 24 for " in text) == (count == 24)
    assert "began with " in text
    assert "--accept_changed_data" in text
    assert summary_of(tmp_path / "run") == before


def test_run_goes_on_with_changed_data_that_is_accepted(start, tmp_path):
    start(stops=True, epochs=4)
    first = summary_of(tmp_path / "run")["data"]
    change_images(tmp_path, 24)
    run = start(stops=False, epochs=4, accept_changed_data=True)
    assert run.epochs == 4
    # The schedule ends when training does, as of a run on the new images.
    assert int(run.model.optimizer.iterations) == 4 * 3
    assert float(run.model.optimizer.learning_rate) == pytest.approx(0)
    summary = summary_of(tmp_path / "run")
    assert summary["data"]["images_per_epoch"] == 24
    assert summary["earlier_data"] == [{**first, "epochs_trained": 1}]
    assert (
        runs.about(tmp_path / "run")["earlier_data"][0]["sha256"]
        == (first["sha256"])
    )


def test_other_flags_of_the_data_are_a_change_of_them(start, tmp_path):
    """Such as another split, another file, or a folder that has moved."""
    start(stops=True)
    before = summary_of(tmp_path / "run")["data"]
    with pytest.raises(FileExistsError) as error:
        start(split="train[:8]")
    assert str(error.value) == (
        "A run goes on with the flags that it began with. "
        f"Received: --split=train[:8] for {str(tmp_path / 'run')!r}, which has "
        "--split=train. --accept_changed_data goes on with these data"
    )
    with pytest.raises(FileExistsError, match=r"has --seed=0 --split=train$"):
        start(split="train[:8]", seed=1)
    with pytest.raises(FileExistsError, match=r"has --seed=0$"):
        start(split="train[:8]", seed=1, accept_changed_data=True)
    (tmp_path / "images.npz").rename(tmp_path / "moved.npz")
    moved = {"data": str(tmp_path / "moved.npz"), "split": "train[:8]"}
    assert start(**moved, accept_changed_data=True).epochs == 2
    summary = summary_of(tmp_path / "run")
    assert summary["data"]["source"] == moved["data"]
    assert summary["data"]["split"] == "train[:8]"
    assert summary["earlier_data"] == [{**before, "epochs_trained": 1}]


@pytest.mark.fault(54)
def test_run_directory_may_have_another_name(start, tmp_path, monkeypatch):
    start(stops=True)
    (tmp_path / "run").rename(tmp_path / "r\udcff\u00e9")
    (tmp_path / "run").symlink_to(tmp_path / "r\udcff\u00e9")
    monkeypatch.chdir(tmp_path)
    assert start(stops=True, output_dir="r\udcff\u00e9/").epochs == 1
    assert flags_of(tmp_path / "run")["output_dir"] == "r\udcff\u00e9/"
    assert start(output_dir="run").epochs == 2


def test_every_change_of_data_stays_on_record(start, tmp_path):
    start(stops=True, epochs=4)
    for count in (24, 32):
        change_images(tmp_path, count)
        start(stops=True, epochs=4, accept_changed_data=True)
    found = summary_of(tmp_path / "run")
    sizes = [x["images_per_epoch"] for x in found["earlier_data"]]
    assert sizes == [16, 24]
    assert found["data"]["images_per_epoch"] == 32
    change_images(tmp_path, 16)
    with pytest.raises(ValueError, match="began with"):
        start(epochs=4)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(18):
        path = tmp_path / "photos" / f"{number:02}.bmp"
        pixels = rng.integers(0, 256, (8, 8, 3), "uint8")
        PIL.Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def added(photos):
    shutil.copy(photos / "00.bmp", photos / "new.bmp")


def removed(photos):
    (photos / "17.bmp").unlink()


def renamed(photos):
    (photos / "17.bmp").rename(photos / "new.bmp")


def repainted(photos):
    """Another picture in a file of the same name and size."""
    shutil.copy(photos / "00.bmp", photos / "17.bmp")


def scanned_again(photos):
    (photos.parent / "manifest.parquet").unlink()
    shutil.copy(photos / "00.bmp", photos / "17.bmp")
    scanning.scan(photos, photos.parent / "manifest.parquet")
    rng = np.random.default_rng(0)
    for number in range(18):  # The pictures are what they were.
        pixels = rng.integers(0, 256, (8, 8, 3), "uint8")
        PIL.Image.fromarray(pixels).save(photos / f"{number:02}.bmp")


@pytest.mark.fault(56)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (added, "files 19"),
        (removed, "files 17"),
        (renamed, "sha256"),
        (repainted, "content"),
        (scanned_again, "manifest"),
    ],
)
def test_any_change_of_a_folder_is_noticed(
    change, words, photos, tmp_path, monkeypatch
):
    standins.use(monkeypatch)
    manifest = None
    if change is scanned_again:
        manifest = str(tmp_path / "manifest.parquet")
        scanning.scan(photos, manifest)

    def begin(**options):
        return runs.carry_out(
            recipe.Recipe(batch_size=8, image_size=8, precision="float32"),
            recipe.Data(data=str(photos), manifest=manifest),
            tmp_path / "run",
            report=lambda text: None,
            **options,
        )

    def killed(*_, **__):
        raise SystemExit("killed")

    monkeypatch.setattr(simclr.SimCLRModel, "fit", killed)
    with pytest.raises(SystemExit):
        begin()
    change(photos)
    with pytest.raises(ValueError, match="goes on with the data") as error:
        begin()
    now, then = str(error.value).split(" which began with ")
    assert words in now
    assert words.split()[0] in then
    with pytest.raises(SystemExit):  # It goes on.
        begin(accept_changed_data=True)


def test_epochs_follow_from_the_number_of_images(start, tmp_path):
    told = []
    run = start(stops=True, epochs=None, report=told.append)
    assert run.recipe.epochs == 400  # Of two steps each.
    assert any(" An epoch: 16 images, " in x for x in told)
    assert "Epochs: 400. Steps: 2 an epoch, 800 in all." in told
    assert flags_of(tmp_path / "run")["epochs"] == "400"
    # It goes on with the number of then, whatever is the default of now.
    rewrite_flags(tmp_path / "run", epochs="2")
    run = start(epochs=None)
    assert run.recipe.epochs == run.epochs == 2


def test_too_few_steps_are_told_once_with_the_cure(start, tmp_path):
    told = []
    start(report=told.append, doctor=True)
    assert (
        "Epochs: 2. Steps: 2 an epoch, 4 in all: too few. After fewer than "
        "800 an encoder may be worth less than raw pixels. Cure: "
        "--epochs=400, or no --epochs."
    ) in told
    assert sum("too few" in text for text in told) == 1
    findings = summary_of(tmp_path / "run")["findings"]
    assert "too_few_steps" in [x["rule"] for x in findings]


def rates_of(run):
    """Learning rates of all steps of a run."""
    optimizer = run.model.optimizer
    steps = range(int(optimizer.iterations) + 1)
    return [float(optimizer.optimizer._learning_rate(step)) for step in steps]


def test_finished_run_goes_on_for_more_epochs(start, tmp_path):
    run_dir, told = tmp_path / "run", []
    first = start()
    flags = flags_of(run_dir)
    assert (first.epochs, first.all_epochs) == (2, 2)
    evaluate(run_dir)
    run = start(more_epochs=2, report=told.append)
    assert (run.epochs, run.all_epochs) == (4, 4)
    assert "Epochs that are added: 2." in told
    assert flags_of(run_dir) == flags
    summary = summary_of(run_dir)
    assert summary["more_epochs"] == [2]
    assert summary["resumed"] == [2]
    assert summary["epochs_trained"] == 4
    assert summary["finished"]
    assert "rows" not in summary
    assert len(summary["earlier_evaluations"]) == 1
    rates = rates_of(run)  # Of two steps an epoch.
    assert rates[:5] == [*rates_of(first)[:4], pytest.approx(0.3 * max(rates))]
    assert rates[4] > rates[5] > rates[6] > rates[7] > rates[8] == 0.0
    again = start(more_epochs=1)
    assert (again.epochs, summary_of(run_dir)["more_epochs"]) == (5, [2, 1])
    assert rates_of(again)[:8] == rates[:8]
    log = (run_dir / "log.csv").read_text().splitlines()
    epochs = [line.split(",")[0] for line in log]
    assert epochs == ["epoch", *map(str, range(5))]
    assert int(runs.load_model(run_dir).optimizer.iterations) == 10
    assert runs.about(run_dir)["more_epochs"] == [2, 1]


def test_interrupted_addition_goes_on(start, tmp_path):
    start()
    assert start(more_epochs=2, stops=3).epochs == 3
    assert not summary_of(tmp_path / "run")["finished"]
    with pytest.raises(FileExistsError, match="without --more_epochs goes on"):
        start(more_epochs=2)
    run = start()
    assert (run.epochs, run.all_epochs) == (4, 4)
    weights = run.model.get_weights()
    start(output_dir=tmp_path / "whole")
    whole = start(output_dir=tmp_path / "whole", more_epochs=2)
    for ours, right in zip(weights, whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, right)


def test_more_epochs_need_a_finished_run(start, tmp_path):
    with pytest.raises(FileNotFoundError, match="which holds no run"):
        start(more_epochs=1)
    assert not (tmp_path / "run").exists()
    start(stops=True)
    with pytest.raises(FileExistsError, match="whose run is not finished"):
        start(more_epochs=1)
    start()
    with pytest.raises(ValueError, match="`more_epochs` must be an integer"):
        start(more_epochs=0)
    for path in (tmp_path / "run").glob("epoch-*"):
        path.unlink()
    before = (tmp_path / "run" / "model.keras").read_bytes()
    with pytest.raises(ValueError, match="which has none any more"):
        start(more_epochs=1)
    assert (tmp_path / "run" / "model.keras").read_bytes() == before
    assert summary_of(tmp_path / "run")["finished"]


@pytest.fixture
def encoder(tmp_path):
    """The file of an encoder of other images, which draws in training."""
    keras.utils.set_random_seed(5)
    norm = keras.layers.BatchNormalization(momentum=0.999)
    network = standins.encoder(norm, keras.layers.Dropout(0.3))
    norm.moving_mean.assign(np.full(6, 100.0))
    network.save(tmp_path / "encoder.keras")
    return tmp_path / "encoder.keras"


@pytest.mark.filterwarnings("ignore:'sequential.* draws random numbers")
def test_run_that_starts_from_weights_keeps_them_and_goes_on(
    start, encoder, tmp_path
):
    weights = copies.weights_digest(keras.models.load_model(encoder))
    flags = {"start_from": str(encoder), "epochs": 2}
    whole = start(output_dir=tmp_path / "whole", **flags)
    assert start(stops=True, **flags).epochs == 1
    encoder.rename(tmp_path / "gone.keras")
    with pytest.raises(FileExistsError, match="flags that it began with"):
        start(start_from="keras_applications:VGG16")
    run_dir = tmp_path / "run"
    run = start(**flags)
    assert run.epochs == 2
    for ours, right in zip(
        run.model.variables, whole.model.variables, strict=True
    ):
        np.testing.assert_array_equal(ours, right)
    kept = run_accounts.encoders_beside(run_dir, [])["start"]
    assert copies.weights_digest(kept.encoder) == weights
    about = {"name": str(encoder), "weights": weights}
    assert summary_of(run_dir)["start"] == runs.about(run_dir)["start"] == about
    found = flags_of(run_dir)
    assert found["image_size"] == "8"
    assert not {"depth", "stem", "width_multiplier"} & found.keys()
    # The averages became those of the run's images before the first step.
    (mean,) = (x for x in run.model.encoder.variables if "mean" in x.path)
    assert np.abs(mean).max() < 1
    assert run_accounts.encoders_beside(tmp_path, []) == {}
    (run_dir / "summary.json").unlink()  # Nothing else knows its name.
    told = []
    assert [*run_accounts.encoders_beside(run_dir, [], told.append)] == [
        "start"
    ]
    assert told == ["Beside it its start, start.keras, as it was before."]


def test_run_can_start_from_a_run_with_its_head_at_another_size(
    start, tmp_path
):
    first, second = tmp_path / "first", tmp_path / "second"
    model = simclr.SimCLRModel(
        standins.encoder(), simclr.ProjectionHead(1, units=3)
    )
    first.mkdir()
    runs.save_model(model, first)
    flags = {"start_from": str(first), "keep_head": True, "image_size": 10}
    start(output_dir=second, epochs=1, **flags)
    kept = run_accounts.encoders_beside(second, [])["start"]
    assert kept.encoder.input_shape == (None, 10, 10, 1)
    for part in ("encoder", "projection_head"):
        for ours, right in zip(
            getattr(kept, part).weights,
            getattr(model, part).weights,
            strict=True,
        ):
            np.testing.assert_array_equal(ours, right)
    assert "projection_layers" not in flags_of(second)


def test_starts_that_do_not_fit_are_refused_unwritten(start, encoder, tmp_path):
    path = str(encoder)
    network = keras.models.load_model(encoder)
    keras.Sequential([network, keras.layers.Softmax()]).save(
        tmp_path / "classes.keras"
    )
    standins.encoder(shape=(8, 8, 3)).save(tmp_path / "rgb.keras")
    for words, flags in {
        "has none. Leave out --keep_head": {"keep_head": True},
        "Turn it off: --without_dropout": {"micro_batch_size": "4"},
        "must end in a representation": {
            "start_from": str(tmp_path / "classes.keras")
        },
        "Take --channels=3": {"start_from": str(tmp_path / "rgb.keras")},
        "`stem` must be left out": {"stem": "auto"},
    }.items():
        with pytest.raises(ValueError, match=words):
            start(**{"start_from": path, **flags})
        assert not (tmp_path / "run").exists()
    run = start(start_from=path, micro_batch_size="4", without_dropout=True)
    assert run.epochs == 2
