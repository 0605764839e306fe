"""A step that cannot be made: what is kept of it, and how it is replayed."""

import numpy as np
import tensorflow as tf

from keras_simclr import (
    _checks,
    _files,
    array_files,
    elements,
    fit_data,
    orders,
    streams,
)
from keras_simclr.replicas import has_workers

_SEEN = ("images", "view_1", "view_2")  # What has pixels.


def kept(error, model, dataset, keeper):
    """Keeps the state before a step that failed, and the batch that did it.

    Args:
        error: What `fit` raised.
        model: The `SimCLRModel`, as the step before left it.
        dataset: What `fit` was given.
        keeper: The `Checkpoints` of that `fit`.

    Returns:
        The error to raise. Nothing is kept with several workers, each of which
        may have failed by itself, or on a disk that is full. Nor is the batch
        of a dataset that somebody shuffles: it cannot be read again.

    Example:

    ```python
    except ValueError as error:
        raise kept(error, model, dataset, keeper) from None
    ```
    """
    if has_workers(model.distribute_strategy) or keeper.has_given_up:
        return error
    keeper.keep_within()
    if not isinstance(error, elements.BatchError):
        return error
    if orders.is_shuffled(dataset):  # The next pass has another order.
        return error
    step = int(model.optimizer.iterations.numpy())
    path = keeper.run_dir / f"nan-step-{step}.npz"
    data = fit_data.as_dataset(
        dataset, check=None, shuffle=True, seed=model.seed
    )
    element = streams.element_at(data, *keeper.place)
    arrays = {name: x.numpy() for name, x in elements.unpack(element).items()}
    with _files.replacing(path) as staged, staged.open("wb") as file:
        np.savez(file, step=step, **arrays)
    return type(error)(
        f"{error} {str(path)!r} keeps its batch. To see where it fails: "
        f"keras-simclr replay --run_dir={keeper.run_dir} --batch={path}"
    )


def replay(model, path):
    """Makes a step again, and says what is not finite.

    Args:
        model: The `SimCLRModel` as it was before the step.
        path: Of the batch, as `kept` wrote it.

    Returns:
        List of lines: images, views, representations, projections, loss and
        gradients, in this order.

    Raises:
        ValueError: If the file is another, or of another step.

    Example:

    ```python
    lines = replay(load_model("runs/a"), "runs/a/nan-step-7.npz")
    ```
    """
    element, step = _read(path)
    made = int(model.optimizer.iterations.numpy())
    if step != made:
        raise ValueError(
            "A step is replayed with the model as it was before. Received: "
            f"{str(path)!r}, of step {step}, for a model after step {made}"
        )
    given = [x for name, x in element.items() if name in _SEEN]
    lines = [f"step {step}", _in_words("images", given)]
    if not _are_finite(given):
        return lines  # Nothing else can come of them.
    if "images" in element:
        given = model.views(*elements.images_and_sizes(element), step=step)
        lines.append(_in_words("views", given))
    h = model.encoder(tf.concat(given, axis=0), training=True)
    z = model.projection_head(h, training=True)
    gradients, loss, _ = model.replica_gradients(element)
    wrong = [
        weight.path
        for weight, gradient in zip(
            model.trainable_variables, gradients, strict=True
        )
        if gradient is not None and not _are_finite([gradient])
    ]
    words = f"not finite for {_checks.listing(wrong)}" if wrong else "finite"
    return [
        *lines,
        _in_words("representations", [h]),
        _in_words("projections", [z]),
        _in_words("loss", [loss]),
        f"gradients: {words}",
    ]


def _read(path):
    """What `kept` wrote: an element, and the number of its step."""
    try:
        element = array_files.load_members(path)
        step = int(element.pop("step"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "`batch` must be what a run kept of a step that failed: "
            f"nan-step-N.npz. Received: {str(path)!r} ({error})"
        ) from None
    return {name: tf.constant(x) for name, x in element.items()}, step


def _are_finite(tensors):
    return all(np.isfinite(x.numpy()).all() for x in tensors)


def _in_words(name, tensors):
    """The range of values, and in which rows they are not finite."""
    arrays = [np.asarray(x.numpy(), "float64") for x in tensors]
    finite = [x[np.isfinite(x)] for x in arrays]
    numbers = np.concatenate(finite)
    text = f"{name}: no finite value"
    if numbers.size:
        text = f"{name}: from {numbers.min():.6g} to {numbers.max():.6g}"
    rows = {
        int(row)
        for array in arrays
        for row in np.argwhere(~np.isfinite(np.atleast_1d(array)))[:, 0]
    }
    if rows:
        shown = _checks.listing([str(row) for row in sorted(rows)])
        text += f"; NaN or infinity in rows {shown}"
    return text
