"""Rows of tables, as numbers of shape `(batch, columns)`: views, network."""

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks, kinds
from keras_simclr.adapted import AdaptedLayer
from keras_simclr.columns import Table as Table, read_table as read_table
from keras_simclr.networks import MLP as MLP
from keras_simclr.random_layers import rows_and_total, uniforms

_KEPT_ROWS = 10_000
_KEPT_VALUES = 10_000_000  # 40 MB.


@keras.saving.register_keras_serializable(package="keras_simclr")
class MarginalCorruption(AdaptedLayer):
    """Replaces values of each row by those of other rows: SCARF's view.

    Which groups of columns are replaced is drawn for each row, and for each of
    them the row whose values it gets: a draw from the marginal distribution.
    The rows to draw from are those that `adapt` was shown, of more than 10,000
    a random 10,000 (fewer of wide tables: 10,000,000 values), which are saved
    with the layer.

    Args:
        rate: Share of the groups that is replaced, in [0, 1]: of each row as
            many, to the nearest whole number. 0: none, and nothing to adapt.
        groups: Integer for each column: columns of the same are replaced
            together, by values of one row. None: each column by itself.
        seed: Integer, or None for a random one.
        **kwargs: `name` of the layer.

    Call arguments:
        rows: Floats.
        training: Whether to corrupt. If False the rows come back as float.
        seed: Pair of integers, or None to count the layer's own calls.
        part: As of `RandomResizedCrop`.

    Input shape:
        `(batch, columns)` or `(columns,)`.

    Output shape:
        Same as input, float32.

    Raises:
        ValueError: If an argument is out of range, rows have another number of
            columns than `groups`, or it was not adapted, in training.

    Example:

    >>> rows = np.random.default_rng(0).normal(size=(100, 10))
    >>> corruption = MarginalCorruption(0.6)
    >>> corruption.adapt(rows)
    >>> views = corruption(rows, seed=(0, 1))
    >>> print(f"{np.mean(views != rows.astype('float32')):.2f}")
    0.59

    References:
        - Bahri et al. 2021, arXiv:2106.15147 (SCARF), Algorithm 1.

    Deviation: the number of replaced columns is rounded, there rounded down.
    """

    kind = kinds.TABLES
    _axes = ("columns",)

    def __init__(self, rate=0.6, *, groups=None, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.rate = _checks.probability("rate", rate)
        self.groups = None if groups is None else _checked_groups(groups)

    def _check_shape(self, shape):
        super()._check_shape(shape)
        if self.groups and shape[-1] not in (len(self.groups), None):
            raise ValueError(
                "`groups` must hold an integer for each column. Received: "
                f"{len(self.groups)} groups for rows of shape {shape}"
            )

    def _build(self, width):
        count = max(1, min(_KEPT_ROWS, _KEPT_VALUES // width))
        count = count if self.rate else 0
        self.rows = self._add_state("rows", (count, width))
        # As a number that is exact in float32.
        self.count = self._add_state("count", ())

    def _adapt(self, batches):
        kept, keys, rng = None, None, np.random.default_rng(0)
        for batch in batches:
            batch = batch.astype("float32")
            drawn = rng.random(len(batch))
            if kept is not None:
                batch = np.concatenate([kept, batch])
                drawn = np.concatenate([keys, drawn])
            # Those of the lowest keys are a random sample of all.
            places = np.sort(np.argsort(drawn)[: self.rows.shape[0]])
            kept, keys = batch[places], drawn[places]
        rows = np.zeros(self.rows.shape, "float32")
        rows[: len(kept)] = kept
        self.rows.assign(rows)
        self.count.assign(len(kept))

    def _augment(self, examples, training, seed, part):
        is_drawing = training and self.rate > 0
        if is_drawing:
            self._check_adapted()
        return super()._augment(examples, is_drawing, seed, part)

    def _places(self, columns):
        """Of each column its group, as numbers from 0; and how many."""
        groups = range(columns) if self.groups is None else self.groups
        _, places = np.unique(groups, return_inverse=True)
        return places, places.max() + 1

    def _draw(self, seed, rows, part=None):
        places, total = rows_and_total(rows, part)
        _, count = self._places(rows.shape[-1])
        return tf.gather(uniforms(seed, (total, 2, count)), places)

    def _transform(self, rows, draws):
        columns = rows.shape[-1]
        places, count = self._places(columns)
        chosen, donors = tf.unstack(draws, axis=1)
        ranks = tf.argsort(tf.argsort(chosen, axis=1, stable=True), axis=1)
        is_replaced = ranks < int(self.rate * count + 0.5)
        donors = tf.cast(donors * self.count, tf.int32)
        donors = tf.minimum(donors, tf.cast(self.count, tf.int32) - 1)
        cells = tf.gather(donors, places, axis=1) * columns + tf.range(columns)
        values = tf.gather(tf.reshape(self.rows, [-1]), cells)
        return tf.where(tf.gather(is_replaced, places, axis=1), values, rows)

    def get_config(self):
        return {
            **super().get_config(),
            "rate": self.rate,
            "groups": self.groups,
        }


def _checked_groups(groups):
    found = np.asarray(groups)
    if found.ndim != 1 or found.dtype.kind not in "iu" or not found.size:
        raise ValueError(
            "`groups` must be a list of integers, one for each column. "
            f"Received: groups={groups!r}"
        )
    return found.tolist()


def default_augmentation(shape, source=None):
    """The views of rows: one as it is, and one that is corrupted.

    Args:
        shape: Of a batch of rows.
        source: What has `groups`, as a `Table`; None: each column by itself.

    Returns:
        Dictionary of arguments for `SimCLRModel`: `augmentation`, and
        `second_augmentation`, which must be adapted.

    Example:

    >>> parts = default_augmentation((None, 10))
    >>> parts["augmentation"].rate, parts["second_augmentation"].rate
    (0.0, 0.6)
    """
    groups = getattr(source, "groups", None)
    return {
        "augmentation": MarginalCorruption(0.0, name="augmentation"),
        "second_augmentation": MarginalCorruption(
            groups=groups, name="second_augmentation"
        ),
    }


def default_encoder(input_shape, width_multiplier=1.0):
    """The network for rows of a table.

    Args:
        input_shape: `(columns,)`.
        width_multiplier: Positive number; every layer has this many times 256
            units.

    Returns:
        A functional `keras.Model`, as `MLP` returns it.

    Raises:
        ValueError: If `width_multiplier` is not positive.

    Example:

    >>> default_encoder((10,), 0.25).output_shape
    (None, 64)
    """
    _checks.positive_number("width_multiplier", width_multiplier)
    units = max(1, round(256 * width_multiplier))
    return MLP((units,) * 4, input_shape=input_shape)
