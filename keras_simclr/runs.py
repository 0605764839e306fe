"""The run directory: flags, log, weights and results of one pretraining."""

import contextlib
import dataclasses
import pathlib

import keras

from keras_simclr import (
    _checks,
    _files,
    _terminal,
    cards,
    copies,
    devices,
    failures,
    fingerprints,
    flag_texts,
    kind_recipes,
    kinds,
    logs,
    orders,
    pretrained,
    recipe as recipes,
    records,
)
from keras_simclr.checkpoints import (
    FLAGS,
    MODEL,
    Checkpoints,
    restore,
    save_model as save_model,
)
from keras_simclr.copies import weights_digest
from keras_simclr.features import adapt, settle_on
from keras_simclr.keras_files import load_network
from keras_simclr.model import SimCLRModel
from keras_simclr.replicas import check_agreement
from keras_simclr.run_files import (
    read_summary as read_summary,
    recorded_flags as recorded_flags,
    sorted_evaluations,
    update_summary as update_summary,
    write_summary,
    write_text,
)

LOG = "log.csv"
START = "start.keras"  # The model before the first step, of a run with a start.


@dataclasses.dataclass(frozen=True)
class Run:
    """Result of `carry_out`.

    Attributes:
        model: The `SimCLRModel`.
        recipe: The `recipe.Recipe` that it was trained with, all chosen.
        epochs: Epochs trained; less than all after Ctrl-C.
        all_epochs: The recipe's epochs, and those that were added to them.
    """

    model: keras.Model
    recipe: recipes.Recipe
    epochs: int
    all_epochs: int


def carry_out(
    recipe,
    data,
    run_dir,
    *,
    given=None,
    accept_changed_data=False,
    more_epochs=None,
    about=None,
    doctor=True,
    tensorboard=False,
    keeping=None,
    report=print,
    progress=None,
):
    """Does what `keras-simclr pretrain` does.

    Args:
        recipe: `recipe.Recipe`; what it leaves to `auto` is chosen by
            measuring, or as the unfinished run has it.
        data: `recipe.Data`.
        run_dir: Directory to write: new, empty, or with an unfinished run.
        given: Names of the fields that somebody chose, or None for all. An
            unfinished run goes on with its own values of the others.
        accept_changed_data: As `pretrain`.
        more_epochs: Epochs to add to a finished run, or None: with its weights,
            on a new cosine from 0.3 of the rate. `summary.json` keeps a list of
            them. An unfinished run has those that were added before.
        about: Dictionary, further entries of `summary.json`, or None.
        doctor: Whether a `callbacks.Doctor` watches; an unfinished run goes on
            with or without.
        tensorboard: Whether TensorBoard's files are written, with views of a
            few images, into `tensorboard` in the run directory.
        keeping: As `pretrain`.
        report: Function that is told, in words, what is found and chosen, and
            what the doctor says.
        progress: As `pretrain`.

    Returns:
        A `Run`.

    Raises:
        FileExistsError: As `pretrain`.
        ImportError: If TensorBoard is asked for and not installed.
        OSError: As `pretrain`.
        ValueError: If a value is out of range, or as `pretrain`.

    Example:

    ```python
    data = simclr.recipe.Data(data="photos")
    run = carry_out(simclr.recipe.Recipe(epochs=20), data, "runs/photos")
    ```
    """
    recipe, given = _as_given(recipe, data, given)
    recipe.check_start(given)
    strategy = devices.make_strategy(recipe.strategy)
    watch = logs.watching(strategy, doctor, tensorboard)
    report(f"Devices: {devices.describe_devices(strategy)}.")
    check_can_run(run_dir, more_epochs=more_epochs)
    if strategy.extended.should_checkpoint:
        _files.check_can_write(run_dir)
    recipe, data, given = _as_it_began(recipe, data, run_dir, set(given))
    recipe = _with_size_of_start(recipe, run_dir)
    flags = flag_texts.as_flags(_values(recipe, data, run_dir))
    check_can_run(run_dir, flags, accept_changed_data, more_epochs)
    added = _added_epochs(run_dir, more_epochs)
    recipe = _with_keras_set(recipe, strategy, report)
    source, dataset = recipe.open(data)
    spec, steps = dataset.element_spec, int(dataset.cardinality())
    recipe, data = recipe.completed(spec, steps, source), data.completed(source)
    _introduce(report, recipe, data, source, steps, added)
    recipe = recipe.with_choice(
        "micro_batch_size",
        strategy,
        lambda: recipe.largest_micro_batch(spec, steps, strategy, source),
        report,
    )
    with strategy.scope():
        model = _again(recipe, run_dir).build(spec, steps, added, source)
    values = _values(recipe, data, run_dir)
    all_epochs = sum(added, recipe.epochs)
    epochs = pretrain(
        *(model, dataset, run_dir),
        epochs=all_epochs,
        flags=flag_texts.as_flags(values),
        summary={
            **_beginning_of_record(recipe, model, added, about),
            "data": _data_of_record(source, data, steps * recipe.batch_size),
            "flags": {"given": sorted(given), "values": values},
        },
        accept_changed_data=accept_changed_data,
        more_epochs=more_epochs,
        callbacks=watch(_seen(dataset, recipe, data), run_dir, report),
        keeping=keeping,
        beside=getattr(source, "write_beside", None),
        progress=progress,
    )
    return Run(model, recipe, epochs, all_epochs)


def _as_given(recipe, data, given):
    """Recipe and given names; who gives none means all of a kind's recipe."""
    if given is not None:
        return recipe, given
    recipe = kind_recipes.with_defaults(recipe, data)
    return recipe, {**vars(data), **recipe.values}


def _with_keras_set(recipe, strategy, report):
    """The recipe with its precision, which Keras has from now on."""
    recipe = recipe.with_choice(
        "precision", strategy, devices.fastest_precision, report
    )
    keras.config.set_dtype_policy(recipe.precision)
    keras.utils.set_random_seed(recipe.seed)
    return recipe


def _seen(dataset, recipe, data):
    """A dataset whose images can be looked at, without moving a shuffle."""
    return recipe.open(data)[1] if orders.is_shuffled(dataset) else dataset


def _introduce(report, recipe, data, source, steps, added):
    """Says what will be trained on, and how long."""
    kind = kinds.named(data.kind)
    report(
        f"To train on: {data.in_words(source)}. An epoch: "
        f"{steps * recipe.batch_size:,} {kind.plural}, {recipe.views} "
        f"view{'s' * (recipe.views > 1)} of each, without their labels."
    )
    length = kind.said(recipe.steps_in_words(steps))
    report(f"Epochs: {recipe.epochs}. Steps: {length}.")
    if added:
        report(f"Epochs that are added: {' + '.join(map(str, added))}.")


def _with_size_of_start(recipe, run_dir):
    """The recipe with the size of images that its start is made for."""
    if recipe.start_from is None:
        return recipe
    recorded = recorded_flags(run_dir)
    if recorded:
        side = flag_texts.from_text(recipes.Recipe, recorded).get("image_size")
    else:  # What cannot be a start is refused now.
        side = pretrained.own_side(recipe.start_from)
        if recipe.keep_head:
            recipe.projection_head()
    return dataclasses.replace(recipe, image_size=recipe.image_size or side)


def _again(recipe, run_dir):
    """The recipe that goes on from what the run has kept of its start."""
    path = pathlib.Path(run_dir) / START
    if recipe.start_from is None or not path.exists():
        return recipe
    return dataclasses.replace(recipe, start_from=str(path))


def _beginning_of_record(recipe, model, added, about):
    """What a summary says of added epochs, and of the encoder before all."""
    found = {"command": recipe.command, **cards.versions(), **(about or {})}
    found |= {"more_epochs": added} if added else {}
    if recipe.start_from is None:
        return found
    weights = weights_digest(model.encoder)
    return {**found, "start": {"name": recipe.start_from, "weights": weights}}


def _start(model, dataset, run_dir, is_chief):
    """Keeps the weights that a run starts from, and has them see its images."""
    if is_chief:
        start = pretrained.without_compiling(model)
        with _files.replacing(run_dir / START) as staged:
            start.save(staged)
    settle_on(model, dataset)


def _added_epochs(run_dir, more_epochs):
    """Numbers of epochs that were added to a run, and that are now."""
    added = [*read_summary(run_dir).get("more_epochs", ())]
    return added if more_epochs is None else [*added, more_epochs]


def _data_of_record(source, data, images_per_epoch):
    """What must be the same for an unfinished run to go on."""
    found = {
        **fingerprints.fingerprint(source, data_dir=data.data_dir),
        "split": data.split,
        "channels": data.channels,
        "bits": data.bits,
        "images_per_epoch": images_per_epoch,
    }
    if data.manifest is not None:
        found["manifest"] = fingerprints.fingerprint(data.manifest)["sha256"]
    return found


def _values(recipe, data, run_dir):
    """All flags of `pretrain` that mean something."""
    values = {**vars(data), "output_dir": str(run_dir), **recipe.values}
    if data.columns == _columns_in(run_dir, data.kind):
        values["columns"] = None  # Its own go without saying.
    idle = kind_recipes.idle_fields(data.kind)
    return {k: v for k, v in values.items() if k not in idle}


def _as_it_began(recipe, data, run_dir, given):
    """Recipe, data and given names of the unfinished run, if there is one.

    Where nobody said anything, then or now, a flag's absence means what it
    meant then.
    """
    recorded = recorded_flags(run_dir)
    if not recorded:
        data = kind_recipes.with_kind(data)
        return kind_recipes.with_defaults(recipe, data, given), data, given
    # Version 0.1 did not record what was given: it may have been all.
    known = read_summary(run_dir).get("flags", {"given": recorded})
    values = {**dict.fromkeys(known.get("values", ())), **recorded}
    values.setdefault("kind", "images")
    given_then = set(known["given"])

    def began(part):
        texts = {
            name: values.get(name)
            for name, value in vars(part).items()
            if recipes.is_open(name, value)
            or (name in values and name not in given | given_then)
        }
        texts = flag_texts.from_text(type(part), texts)
        return dataclasses.replace(part, **texts)

    data = began(data)
    if data.columns is None:  # Data that have changed are read as they were.
        columns = _columns_in(run_dir, data.kind)
        data = dataclasses.replace(data, columns=columns)
    return began(recipe), data, given_then


def pretrain(
    model,
    dataset,
    run_dir,
    *,
    epochs,
    flags="",
    summary=None,
    accept_changed_data=False,
    more_epochs=None,
    callbacks=(),
    keeping=None,
    beside=None,
    progress=None,
):
    """Trains a model and keeps everything in a run directory.

    It holds `flags.txt`, `log.csv` (a line per epoch, with its seconds, images
    a second and learning rate), `model.keras` (as of the latest checkpoint;
    complete at any time), the last checkpoints, their list `checkpoints.json`,
    and `summary.json`, which says in `resumed`
    after how many epochs it was gone on with. Ctrl-C, and what else asks a
    process to end, ends training after the step, and keeps everything as it is
    then; asked once more, it ends at once. Called again with the same flags,
    an unfinished run goes on after its last checkpoint, and ends as if it had
    not been interrupted. Of a step that cannot be made `nan-step-N.npz` keeps
    the batch, for `keras-simclr replay`.

    Args:
        model: A compiled `SimCLRModel`.
        dataset: What `fit` takes. Made anew in each call, with seeded shuffles:
            otherwise the order of its batches is another.
        run_dir: Directory to write: new, empty, or with an unfinished run.
        epochs: Passes over the dataset.
        flags: Text of `flags.txt`, for `--flagfile`.
        summary: Dictionary, the first content of `summary.json`. Its entry
            `data` tells which data these are: a dictionary, as from
            `fingerprints.fingerprint`. Its entry `start`, with a `name`, tells
            that the encoder has been trained before: `start.keras` keeps the
            model as it is, and the averages of batch norm are estimated on the
            dataset, before the first step.
        accept_changed_data: Whether an unfinished run may go on with other
            data. The schedule is then that of a run on these from the start,
            at the epoch reached; `summary.json` keeps what they were before
            in `earlier_data`.
        more_epochs: How many of `epochs` are added to a finished run, or None.
            The model's schedule has them, as from `recipe.Recipe.build`.
        callbacks: Further callbacks, whose entries in the logs `log.csv` has,
            too. The findings of a `callbacks.Doctor` are kept in the entry
            `findings` of `summary.json`, also those from before a run goes on.
        keeping: Dictionary, arguments of `callbacks.Checkpoints`; by default
            it keeps one every 15 minutes within an epoch, too.
        beside: Function that is told the directory, as soon as it is a run's,
            and writes what else must be kept; or None.
        progress: Function that is told after each step how many are done, of
            how many, and, in words, of the epoch; `ends=True` at its end.

    Returns:
        The number of epochs trained; less than `epochs` after Ctrl-C.

    Raises:
        FileExistsError: If `run_dir` holds a finished run (with `more_epochs`:
            none that is), one with other flags, or anything else.
        OSError: If it cannot be written, or another process trains in it.
        ValueError: If the run began with other data; or if training diverges:
            then the model from before is kept.

    Example:

    ```python
    pretrain(model, dataset, "runs/flowers", epochs=100)
    model = load_model("runs/flowers")
    ```
    """
    run_dir, summary = pathlib.Path(run_dir), dict(summary or {})
    check_can_run(run_dir, flags, accept_changed_data, more_epochs)
    keeper = Checkpoints(run_dir, **{"minutes": 15, **(keeping or {})})
    is_chief = model.distribute_strategy.extended.should_checkpoint
    alone = contextlib.nullcontext()
    if is_chief:
        _files.check_can_write(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        alone = _files.locked(run_dir)
    with alone, _terminal.deferred() as came:
        keeper.is_asked = lambda: bool(came)
        accepts = accept_changed_data
        first = _go_on(model, dataset, run_dir, flags, summary, accepts)
        callbacks = [logs.Pace(progress), *callbacks]
        is_begun = bool(first or model.unfinished)
        if is_chief:
            write_text(run_dir / FLAGS, flags)
            if beside:
                beside(run_dir)
            resumed = [first] if is_begun and first < epochs else []
            known = _known_before(run_dir, summary, resumed)
            callbacks += _write_beginning(run_dir, known, first, callbacks)
            callbacks += [logs.Log(run_dir / LOG, first)]
        if is_begun:
            keeper.epochs, keeper.weights = first, weights_digest(model)
            keeper.steps = int(model.optimizer.iterations.numpy())
        else:
            adapt(model, dataset)
            if "start" in summary:
                _start(model, dataset, run_dir, is_chief)
        return _train(model, dataset, epochs, first, callbacks, keeper)


def _go_on(model, dataset, run_dir, flags, summary, accepts):
    """Brings a model to where its run goes on; whole epochs that it has made.

    The summary gets what the data were before.
    """
    earlier = _earlier_data(run_dir, summary.get("data"), accepts)
    first = restore(model, run_dir)
    _check_goes_on(run_dir, summary, first)
    steps = model.optimizer.iterations
    same = [x for x in flags.splitlines() if not x.startswith("--output_dir=")]
    same += [f"seed {model.seed}", f"data {summary.get('data')}"]
    check_agreement(
        model.distribute_strategy, int(steps.numpy()), ", ".join(same)
    )
    if earlier:
        earlier[-1].setdefault("epochs_trained", first)
        summary["earlier_data"] = earlier
        # As if it had been trained on these: the schedule ends when it does.
        behind = model.unfinished.step if model.unfinished else 0
        steps.assign(first * len(dataset) + behind)
    return first


def _write_beginning(run_dir, known, first, callbacks):
    """Writes what is known of a run before it trains on; who adds to it."""
    doctors = logs.doctors_among(callbacks)
    known |= logs.findings_before(known, first, doctors)
    write_summary(run_dir, known)
    return [logs.keeping(lambda x: update_summary(run_dir, x), doctors)]


def _train(model, dataset, epochs, first, callbacks, keeper):
    """What `pretrain` does from there; epochs trained."""
    is_chief = model.distribute_strategy.extended.should_checkpoint
    run_dir = keeper.run_dir
    try:
        model.fit(
            dataset,
            epochs=epochs,
            initial_epoch=first,
            callbacks=[*callbacks, keeper],
            verbose=0,
        )
    except KeyboardInterrupt:
        is_kept = keeper.steps == model.optimizer.iterations.numpy()
        if is_chief and not is_kept and keeper.is_worth_keeping():
            keeper.save_model()
    except Exception as error:
        told = failures.kept(error, model, dataset, keeper)
        if told is error:
            raise
        raise told from None
    finally:
        keeper.on_train_end()
        if is_chief:
            known = logs.findings_of(logs.doctors_among(callbacks))
            _write_end(run_dir, keeper, epochs, known)
    copies.check_finite(model)
    return keeper.epochs


def _known_before(run_dir, summary, resumed):
    """What is known of a run before it trains on: not of its next weights."""
    known = {**read_summary(run_dir), **summary}
    for name in (*cards.TRAINED, "weights", "finished"):
        known.pop(name, None)
    if resumed:
        known["resumed"] = [*known.get("resumed", ()), *resumed]
    return sorted_evaluations(known, None)


def _check_goes_on(run_dir, summary, first):
    if summary.get("more_epochs") and not first:
        raise ValueError(
            "A finished run goes on from its last checkpoint. Received: "
            f"{str(run_dir)!r}, which has none any more"
        )


def _write_end(run_dir, keeper, epochs, known):
    """Adds to the summary what is known now, and which model is kept."""
    known = {
        **read_summary(run_dir),
        **known,
        "epochs_trained": keeper.epochs,
        "steps_trained": keeper.steps,
        "finished": keeper.epochs == epochs,
    }
    if keeper.weights:
        known["weights"] = keeper.weights
    write_summary(run_dir, sorted_evaluations(known, keeper.weights))


def _earlier_data(run_dir, data, is_accepted):
    """What an unfinished run was trained on before, if that has changed."""
    summary = read_summary(run_dir)
    before, earlier = summary.get("data"), summary.get("earlier_data", [])
    if not before or not data:
        return []
    # What one of two versions does not record tells nothing.
    changed = [x for x in before if x in data and before[x] != data[x]]
    if not changed:
        return []
    if not is_accepted:
        now, then = (
            ", ".join(f"{x} {values[x]}" for x in changed)
            for values in (data, before)
        )
        raise ValueError(
            "An unfinished run goes on with the data that it began with. "
            f"Received: {now} for {str(run_dir)!r}, which began with {then}. "
            "Bring those back, begin anew in another directory, or go on with "
            "these: --accept_changed_data (accept_changed_data=True)"
        )
    return [*earlier, before]


def as_seen(data, directory, channels):
    """Data read as those that an encoder saw in training.

    Args:
        data: `recipe.Data`.
        directory: The run directory, or what `finetune` wrote.
        channels: Of images: those that the encoder takes.

    Returns:
        `recipe.Data`: of images with its channels and bits, of others with what
        else tells how they are read.

    Raises:
        ValueError: If `data` asks for others.

    Example:

    >>> data = simclr.recipe.Data(data="photos")
    >>> as_seen(data, "runs/photos", 1).channels
    1
    """
    flags = recorded_flags(directory)
    found = records.reading_of(flags, directory)
    found = flag_texts.from_text(recipes.Data, found)
    if found["kind"] == "images":
        found["channels"] = channels
    found["columns"] = _columns_in(directory, found["kind"])
    if data.columns == flags.get("columns"):  # Of which it keeps a copy.
        data = dataclasses.replace(data, columns=None)
    for name, seen in found.items():
        given = getattr(data, name)
        if seen is None:  # It did not matter then.
            found[name] = given
        elif given not in (None, recipes.AUTO, seen):
            raise ValueError(
                f"`{name}` must be what the encoder saw in training. Received: "
                f"{name}={given}, where it saw {seen}. Leave out --{name}"
            )
    return dataclasses.replace(data, **found)


def _columns_in(directory, kind):
    """Path of the file of columns in a directory of such data, or None."""
    if kind not in records.COLUMNS:
        return None
    path = pathlib.Path(directory, records.COLUMNS[kind])
    return str(path) if path.is_file() else None


def about(run_dir, model=None):
    """What the model card of a run's encoder says about the run.

    `recipe`, the flags without the place where the run is; and of
    `summary.json`, as far as it has them, `data` and what describes the
    weights of the model, by default that of the run directory.
    """
    recipe = recorded_flags(run_dir)
    recipe.pop("output_dir", None)
    summary = read_summary(run_dir)
    known = ("data", "earlier_data", "more_epochs", "weights", "start")
    known += ("teacher",)
    known += (*cards.TRAINED, *cards.EVALUATED)
    found = {k: summary[k] for k in known if k in summary}
    if found.keys() - {"data", "earlier_data", "more_epochs"}:
        weights = weights_digest(model or load_model(run_dir))
        return cards.of_weights({"recipe": recipe, **found}, weights)
    return {"recipe": recipe, **found}


def check_can_run(
    run_dir, flags=None, accept_changed_data=False, more_epochs=None
):
    """Refuses a directory that is neither free nor an unfinished run's.

    With `more_epochs`: all but a finished run's.

    `flags`, the text of `flags.txt`, must say what that of an unfinished run
    says, but for the devices it runs on, the name of the directory, and the
    data if changed ones are accepted. None: any.
    """
    run_dir = pathlib.Path(run_dir)
    is_finished = read_summary(run_dir).get("finished", False)
    if more_epochs is not None:
        _checks.integer("more_epochs", more_epochs, minimum=1)
        _check_is_finished(run_dir, is_finished)
    elif not (run_dir / FLAGS).exists():
        # A run that was ended while it wrote its first file has only this.
        found = {x.name for x in run_dir.glob("*")} - {_files.LOCK}
        if found != {_files.path_beside(run_dir / FLAGS).name}:
            _files.check_is_empty(run_dir)
        return
    elif is_finished:
        raise FileExistsError(
            "The output directory must be new, empty, or hold an unfinished "
            f"run. Received: {str(run_dir)!r}, whose run is finished. "
            "--more_epochs=N goes on with it"
        )
    if flags is None:
        return
    # A flag that is not there has its present default.
    absent = flag_texts.read_flags(flag_texts.as_flags(recipes.defaults()))
    absent["kind"] = "images"  # There was no other.
    of_data = {field.name for field in dataclasses.fields(recipes.Data)}
    of_data.remove("channels")  # With others the model would be another.
    free = {"strategy", "output_dir", "on_nan"}
    free |= of_data if accept_changed_data else set()
    ours, theirs = (
        {**absent, **x, **dict.fromkeys(free)}
        for x in (flag_texts.read_flags(flags), recorded_flags(run_dir))
    )
    if ours != theirs:
        differing = {k for k in ours | theirs if ours.get(k) != theirs.get(k)}
        cure = ". --accept_changed_data goes on with these data"
        raise FileExistsError(
            "A run goes on with the flags that it began with. "
            f"Received: {_differing(ours, theirs) or 'no flag'} for "
            f"{str(run_dir)!r}, which has {_differing(theirs, ours) or 'none'}"
            f"{cure * (differing <= of_data)}"
        )


def _check_is_finished(run_dir, is_finished):
    if not (run_dir / FLAGS).exists():
        raise FileNotFoundError(
            "`more_epochs` are added to a finished run. Received: "
            f"{str(run_dir)!r}, which holds no run"
        )
    if not is_finished:
        raise FileExistsError(
            "`more_epochs` are added to a finished run. Received: "
            f"{str(run_dir)!r}, whose run is not finished. The same command "
            "without --more_epochs goes on with it"
        )


def _differing(values, others):
    """Flags of the first that the second has not, or not so."""
    differing = dict(sorted(values.items() - others.items()))
    return " ".join(flag_texts.as_arguments(differing))


def load_model(run_dir):
    """Loads the model of a run directory.

    Args:
        run_dir: The run directory.

    Returns:
        A compiled `SimCLRModel`.

    Raises:
        FileNotFoundError: If there is no model in it.
        ValueError: If its weights are not finite.

    Example:

    ```python
    model = load_model("runs/flowers")
    ```
    """
    path = pathlib.Path(run_dir) / MODEL
    if not path.is_file():
        raise FileNotFoundError(
            f"A run directory must hold {MODEL}, written by `pretrain`. "
            f"Received: {str(run_dir)!r}"
        )
    return load_network(path, "The model of a run", SimCLRModel)
