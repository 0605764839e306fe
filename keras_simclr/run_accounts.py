"""What a run tells of itself, in words: how it went, and on what."""

import dataclasses
import pathlib
import warnings

from keras_simclr import (
    _files,
    cards,
    curves,
    fingerprints,
    flag_texts,
    recipe as recipes,
    runs,
)
from keras_simclr.keras_files import load_network
from keras_simclr.model import SimCLRModel
from keras_simclr.sampling import amount_in_words

_HIDDEN = {"output_dir"}  # Flags that say where, not what.


@dataclasses.dataclass(frozen=True)
class RunAccount:
    """What a run directory tells of itself; of none, nothing.

    Attributes:
        name: Name of the directory, or empty.
        verdict: Tuple of sentences.
        findings: Tuple of dictionaries, as in `summary.json`; None if nobody
            looked for some.
        log: `curves.History`, or None.
        table: As of `pages.Facts`.
        settings: As of `pages.Facts`.
    """

    name: str = ""
    verdict: tuple = ()
    findings: tuple | None = None
    log: curves.History | None = None
    table: tuple = ()
    settings: dict = dataclasses.field(default_factory=dict)


def of_run(run_dir, model):
    """Reads what a run directory tells.

    Args:
        run_dir: The run directory.
        model: Its model.

    Returns:
        `RunAccount`.

    Raises:
        ValueError: If `summary.json` is broken.

    Example:

    ```python
    of_run("runs/a", simclr.runs.load_model("runs/a")).verdict
    ```
    """
    summary, flags = runs.read_summary(run_dir), runs.recorded_flags(run_dir)
    with warnings.catch_warnings():
        # What is of other weights is left out; that is said below.
        warnings.simplefilter("ignore")
        about = runs.about(run_dir, model)
    log = curves.read_log(
        pathlib.Path(run_dir, runs.LOG),
        _chance(model, flags),
        _marks(summary, flags),
    )
    findings = summary.get("findings")
    if isinstance(findings, list):
        findings = tuple(x for x in findings if isinstance(x, dict))
    else:
        findings = None
    settings = {
        "Recipe": {k: v for k, v in flags.items() if k not in _HIDDEN},
        "Trained on": {
            k: v for k, v in summary.get("data", {}).items() if v is not None
        },
        "Trained with": {
            name: summary[name]
            for name in ("command", *cards.versions(), "seed")
            if name in summary
        },
    }
    return RunAccount(
        name=pathlib.Path(run_dir).resolve().name,
        verdict=tuple(_state(summary, log, about)),
        findings=findings,
        log=log,
        table=_evaluated(about.get("rows", ())),
        settings=cards.without_places({k: v for k, v in settings.items() if v}),
    )


def _chance(model, flags):
    """The loss of an encoder that knows nothing, where it is known."""
    loss = getattr(model, "contrastive_loss", None)
    if not isinstance(model, SimCLRModel) or loss is None:
        return None
    if not flags.get("batch_size", "").isdigit():
        return None
    return loss.chance(int(flags["batch_size"]), model.number_of_views)


def _marks(summary, flags):
    """What happened between epochs: pairs of how many there were, and what."""
    marks = {}
    for epoch in summary.get("resumed", ()):
        marks[epoch] = "training was gone on with, after a stop"
    for data in summary.get("earlier_data", ()):
        if "epochs_trained" in data:
            marks[data["epochs_trained"]] = "other images from here on"
    if flags.get("epochs", "").isdigit():
        epochs = int(flags["epochs"])
        for more in summary.get("more_epochs", ()):
            marks[epochs] = f"the run was finished; {more} epochs were added"
            epochs += more
    if summary.get("finished") is False and summary.get("epochs_trained"):
        marks[summary["epochs_trained"]] = "stopped before the end"
    return sorted(marks.items())


def _state(summary, log, about):
    """How far the run is, and what it is worth, in sentences."""
    epochs, steps = summary.get("epochs_trained"), summary.get("steps_trained")
    if "official" in summary:
        yield "Weights that the official code wrote: no training of ours."
    elif not epochs:
        yield (
            "No epoch of this run is finished: what follows is of weights that "
            "have hardly been trained."
        )
    else:
        steps = "" if steps is None else f", {steps:,} steps"
        state = "finished" if summary.get("finished", True) else "interrupted"
        plural = "s" if epochs != 1 else ""
        yield f"The run is {state} after {epochs:,} epoch{plural}{steps}."
    if log is not None:
        parts = []
        if (share := log.last("loss_over_chance")) is not None:
            parts.append(f"the loss is {share:.0%} of that of chance")
        elif (loss := log.last("loss")) is not None:
            parts.append(f"the loss is {loss:.3g}")
        if (accuracy := log.last("contrastive_accuracy")) is not None:
            parts.append(
                f"{accuracy:.0%} of the views are most like another view of "
                "the same image"
            )
        if parts:
            yield f"In the last epoch {', and '.join(parts)}."
    if verdict := about.get("evaluation", {}).get("verdict"):
        yield f"As evaluated: {verdict}"
    elif summary.get("rows"):
        yield "It was evaluated with other weights: evaluate it anew."


def _evaluated(rows):
    """The table of `evaluate`, as texts."""
    columns = list(dict.fromkeys(row["labels"] for row in rows))
    cells = {}
    for row in rows:
        low, high = (100 * x for x in row["interval"])
        found = cells.setdefault(f"{row['features']}, {row['probe']}", {})
        found[row["labels"]] = (
            f"{100 * row['accuracy']:.1f} ({low:.1f} to {high:.1f})"
        )
    if not cells:
        return ()
    head = ("features, probe", *map(amount_in_words, columns))
    return (
        head,
        *(
            (name, *(found.get(x, "") for x in columns))
            for name, found in cells.items()
        ),
    )


def own_data(run_dir):
    """The images that a run was trained on.

    Args:
        run_dir: The run directory.

    Returns:
        `recipe.Data`, as its flags say.

    Raises:
        OSError: If they are not there any more.
        ValueError: If it does not say.

    Example:

    ```python
    own_data("runs/photos").data
    ```
    """
    texts = flag_texts.from_text(recipes.Data, runs.recorded_flags(run_dir))
    if "data" not in texts:
        raise ValueError(
            "`data` must be given: only what `pretrain` wrote knows its "
            f"images. Received: {str(run_dir)!r}. Add --data=..."
        )
    data = recipes.Data(**texts)
    _files.check_data("data", data.data)
    return data


def changes(run_dir, source, data):
    """Whether images are others than those that a run was trained on.

    Args:
        run_dir: The run directory, or None.
        source: What `data.open` returned.
        data: `recipe.Data`.

    Returns:
        List of sentences: none, if they are the same, or nothing is known.

    Example:

    ```python
    changes("runs/photos", source, own_data("runs/photos"))
    ```
    """
    then = {} if run_dir is None else runs.read_summary(run_dir).get("data", {})
    if "sha256" not in then:
        return []
    now = {
        **fingerprints.fingerprint(source, data_dir=data.data_dir),
        "split": data.split,
    }
    known = ("sha256", "content", "files", "split")
    changed = [x for x in known if x in then and x in now and now[x] != then[x]]
    if not changed:
        return []
    text = "These are not the images that the run was trained on"
    for name, words in (("split", "split {}"), ("files", "{} files")):
        if name in changed:
            old, new = words.format(then[name]), words.format(now[name])
            return [f"{text}: {old} then, {new} now."]
    return [f"{text}, or they have changed since."]


def encoders_beside(run_dir, names, report=print):
    """What the encoder of a run is compared with.

    Args:
        run_dir: The run directory.
        names: Of encoders and tables, as `evaluate` opens them.
        report: Function that is told, in words, what the run started from.

    Returns:
        Dictionary for `evaluate`: the names as they are; and `"start"`, the
        model that the run started from, if it did.

    Raises:
        ValueError: If a name is `"start"`, too.

    Example:

    ```python
    others = encoders_beside("runs/a", ["keras_applications:VGG16"])
    ```
    """
    encoders = {name: name for name in names}
    path = pathlib.Path(run_dir) / runs.START
    if not path.exists():
        return encoders
    if "start" in encoders:
        raise ValueError(
            "`encoders` must have names other than 'start', which is what this "
            "run started from. Received: 'start'. Write ./start"
        )
    name = runs.read_summary(run_dir).get("start", {}).get("name", runs.START)
    report(f"Beside it its start, {name}, as it was before.")
    return {**encoders, "start": load_network(path)}
