"""What networks cost whoever ships them: parameters, time and bytes."""

import os
import pathlib
import platform
import tempfile
import time

import numpy as np
import tensorflow as tf

from keras_simclr import devices, sampling
from keras_simclr.copies import plain_copy
from keras_simclr.evaluation_views import noise, with_evaluation_view
from keras_simclr.model import SimCLRModel

OWN = "own"  # In place of a number of labels: those of a trained classifier.
_BATCH = 8
_ROUNDS, _SECONDS = 20, 1.0  # The most, of each network.


def measured(networks, paths=None):
    """Measures networks as `export` writes them.

    Args:
        networks: Dictionary from names to `SimCLRModel`s, whose encoders are
            meant, and Keras models of a fixed input shape.
        paths: Dictionary from names to .keras files of those that have one.

    Returns:
        Dictionary: `networks`, a list of dictionaries with `features` (the
        name), `parameters`, `milliseconds` (for an example at rest, a median)
        and `bytes` (of the .keras file, or None for what `export` refuses);
        and `how`, what was timed, in words.

    Example:

    >>> network = keras.Sequential(
    ...     [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    ... )
    >>> (found,) = measured({"mine": network})["networks"]
    >>> found["features"], found["parameters"]
    ('mine', 0)
    """
    pairs = {name: _exported(x) for name, x in networks.items()}
    times = _milliseconds([network for network, _ in pairs.values()])
    found = [
        {
            "features": name,
            "parameters": network.count_params(),
            "milliseconds": milliseconds,
            "bytes": _bytes_of(network, (paths or {}).get(name))
            if can_be_exported
            else None,
        }
        for (name, (network, can_be_exported)), milliseconds in zip(
            pairs.items(), times, strict=True
        )
    ]
    where = f"{os.cpu_count()} {platform.machine()} cores"
    if not devices.only_cpus():
        where += " with a GPU"
    how = f"ms: medians, batches of {_BATCH} on {where}; MB: .keras files"
    return {"networks": found, "how": how}


def _exported(model):
    """The network in an export of a model, and whether there can be one."""
    if not isinstance(model, SimCLRModel):
        return model, True
    network = plain_copy(model.encoder)
    try:
        return with_evaluation_view(model, network), True
    except ValueError:  # No plain layers do what is done to images.
        return network, False


def _milliseconds(networks):
    """For an example of each; in turns, so that all see the same machine."""
    steps = []
    for network in networks:
        step = tf.function(lambda x, f=network: f(x, training=False))
        examples = tf.constant(noise(network.input_shape[1:], _BATCH, network))
        step(examples)  # Traces.
        steps.append((step, examples))
    rounds, start = [], time.perf_counter()
    while len(rounds) < _ROUNDS:
        times = [time.perf_counter()]
        for step, examples in steps:
            step(examples).numpy()
            times.append(time.perf_counter())
        rounds.append(np.diff(times))
        if times[-1] - start > _SECONDS * len(steps):
            break
    return [float(x) * 1e3 / _BATCH for x in np.median(rounds, axis=0)]


def _bytes_of(network, path):
    if path is not None:
        return pathlib.Path(path).stat().st_size
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "encoder.keras")
        network.save(path)
        return path.stat().st_size


def table(rows, found):
    """Lines of a table: what each network is worth, and what it costs.

    Args:
        rows: As of `Evaluation`. Those of the most labels are shown.
        found: As from `measured`. What is untrained costs as much as
            `"simclr"`.

    Returns:
        List of strings.

    Example:

    >>> costs = dict(parameters=1234, milliseconds=0.5, bytes=20_000)
    >>> row = dict(labels="own", accuracy=0.9, interval=(0.85, 0.94))
    >>> lines = table(
    ...     [{"features": "a", "probe": "classifier", **row}],
    ...     {"networks": [{"features": "a", **costs}], "how": "ms: on a clock"},
    ... )
    >>> " ".join(lines[1].split())
    'a, classifier own 90.0 (85.0-94.0) 1,234 0.500 0.02'
    """
    costs = {each["features"]: each for each in found["networks"]}
    costs["untrained"] = costs.get("simclr")
    amounts = [row["labels"] for row in rows if row["labels"] != OWN]
    shown = [
        row
        for row in rows
        if row["labels"] in (*amounts[-1:], OWN) and costs.get(row["features"])
    ]
    names = [f"{row['features']}, {row['probe']}" for row in shown]
    width = max(24, *map(len, names))
    head = ("labels", "accuracy, %", "parameters", "ms an image", "MB")
    lines = [_line("to ship", width, head)]
    for name, row in zip(names, shown, strict=True):
        each = costs[row["features"]]
        size = "" if each["bytes"] is None else f"{each['bytes'] / 1e6:.2f}"
        texts = (
            sampling.amount_in_words(row["labels"]),
            accuracy_in_words(row),
            f"{each['parameters']:,}",
            f"{each['milliseconds']:.3f}",
            size,
        )
        lines.append(_line(name, width, texts))
    notes = [found["how"]]
    if OWN in {row["labels"] for row in shown}:
        notes.append(f"{OWN}: the labels that it was trained with")
    return [*lines, f"{'; '.join(notes)}."]


def _line(name, width, texts):
    labels, accuracy, parameters, milliseconds, size = texts
    return (
        f"{name:{width}}{labels:>14}{accuracy:>20}{parameters:>14}"
        f"{milliseconds:>13}{size:>9}"
    )


def accuracy_in_words(row):
    """Percent and interval of a row of an `Evaluation`."""
    low, high = row["interval"]
    return f"{100 * row['accuracy']:.1f} ({100 * low:.1f}-{100 * high:.1f})"
