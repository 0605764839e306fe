"""How to learn from what is no image: encoder, augmentation, rules of flags."""

import dataclasses

import keras

from keras_simclr import (
    audio,
    augmentations,
    elements,
    kinds,
    series,
    tables,
)
from keras_simclr.data_kinds import kind_of_data, kind_of_source

# Fields of `recipe.Recipe` and `recipe.Data` that images alone have, and those
# of others.
_OF_IMAGES = {
    *("depth", "stem", "image_size", "smallest_crop", "flip_rate", "strength"),
    *("color_rate", "grayscale_rate", "blur_rate", "channels", "bits"),
    *("start_from", "keep_head", "without_dropout"),
    *("weight_decay", "trust_coefficient"),
}
# Defaults of other kinds, where they differ: those of benchmarks/claims/, whose
# scripts say on what they were chosen.
_DEFAULTS = {
    "audio": {"batch_size": 250, "learning_rate": 2e-3, "temperature": 0.1},
    "series": {"batch_size": 128, "learning_rate": 1e-3, "temperature": 0.1},
    "tables": {"batch_size": 128, "learning_rate": 1e-3, "temperature": 1.0},
}
_OF_ALL = {"views": 2, "width_multiplier": 1.0}
_OF_OTHERS = {
    "audio": {"rate", "seconds"},
    "series": {"window", "stride", "label", "columns"},
    "tables": {"label", "columns"},
}


def idle_fields(name):
    """Names of fields of a recipe, or of data, that say nothing of a kind.

    Args:
        name: Of the kind; of another, such as `"auto"`, none are idle.

    Returns:
        Set of names.

    Example:

    >>> "depth" in idle_fields("audio"), "rate" in idle_fields("audio")
    (True, False)
    """
    if name not in (kinds.IMAGES.name, *_OF_OTHERS):
        return set()
    others = set().union(*_OF_OTHERS.values()) - _OF_OTHERS.get(name, set())
    return others if name == kinds.IMAGES.name else others | _OF_IMAGES


def check_fields(kind, given):
    """Refuses fields that somebody chose and that say nothing of a kind.

    Args:
        kind: A `kinds.Kind`.
        given: Dictionary of names of fields and values.

    Raises:
        ValueError: If there are some.

    Example:

    >>> check_fields(simclr.kinds.IMAGES, {"depth": 18})
    """
    wrong = sorted(idle_fields(kind.name) & given.keys())
    if wrong:
        raise ValueError(
            f"`{'`, `'.join(wrong)}` must be left out: these data are "
            f"{kind.plural}. Received: "
            + ", ".join(f"{x}={given[x]!r}" for x in wrong)
        )


def with_kind(data):
    """`recipe.Data` with the kind that they look like, if it says `auto`."""
    kind = kind_of_data(data.data, data.kind)
    return dataclasses.replace(data, kind=kind.name)


def with_defaults(recipe, data, given=None):
    """The recipe with the defaults of the kind that some data look like.

    Args:
        recipe: `recipe.Recipe`.
        data: `recipe.Data`.
        given: Names of the fields that somebody chose, which stay; None for
            all that are not as by default.

    Returns:
        A `recipe.Recipe`.

    Raises:
        ValueError: As `check_fields`.

    Example:

    >>> data = simclr.recipe.Data(data="words", kind="audio")
    >>> with_defaults(simclr.recipe.Recipe(), data, {"views"}).batch_size
    250
    """
    kind = kind_of_data(data.data, data.kind)
    own = {
        field.name: field.default
        for part in (data, recipe)
        for field in dataclasses.fields(part)
    }
    values = {**vars(data), **recipe.values}
    changed = {k: v for k, v in values.items() if v != own[k]}
    given = changed.keys() if given is None else given
    check_fields(kind, {k: v for k, v in changed.items() if k in given})
    if kind.name not in _DEFAULTS:
        return recipe
    found = _OF_ALL | _DEFAULTS[kind.name]
    found = {k: value for k, value in found.items() if k not in given}
    return dataclasses.replace(recipe, **found)


def parts_of(recipe, element_spec, source):
    """Arguments of `SimCLRModel` that depend on the kind of the examples.

    Args:
        recipe: `recipe.Recipe`.
        element_spec: Of the dataset that it will train on.
        source: As in `recipe.Recipe.build`.

    Returns:
        Dictionary: `encoder`, `augmentation`, perhaps `second_augmentation`.

    Example:

    >>> spec = tf.TensorSpec((64, 8, 8, 1))
    >>> sorted(parts_of(simclr.recipe.Recipe(), spec, None))
    ['augmentation', 'encoder']
    """
    kind = kind_of_source(source)
    if kind is kinds.IMAGES:
        shape = recipe.input_shape(element_spec)
        return {
            "encoder": recipe.encoder(shape),
            "augmentation": recipe.augmentation(shape),
        }
    examples = elements.unpack(element_spec)["images"]
    elements.Rules(kind).check({"images": examples})
    augmentation, encoder = _PARTS[kind]
    found = augmentation(examples.shape, source)
    view = keras.KerasTensor(examples.shape)
    view = augmentations.at_rest(found["augmentation"], view)
    return {
        "encoder": encoder(view.shape[1:], recipe.width_multiplier),
        **found,
    }


def layer_at_rest(kind, shape):
    """A layer that tells a model the kind of its examples, and leaves them.

    Args:
        kind: A `kinds.Kind`.
        shape: Of a batch; sounds of other lengths are brought to it.

    Returns:
        A Keras layer; or None, by which a model takes images.

    Example:

    >>> layer_at_rest(simclr.kinds.AUDIO, (None, 8000)).samples
    8000
    """
    make = {
        kinds.AUDIO: lambda: audio.RandomTimeCrop(shape[1]),
        kinds.SERIES: lambda: series.RandomJitter(),
        kinds.TABLES: lambda: tables.MarginalCorruption(0.0),
    }
    return make[kind]() if kind in make else None


def _views_of_sounds(shape, source):
    return {"augmentation": audio.default_augmentation(shape[1], source.rate)}


_PARTS = {
    kinds.AUDIO: (_views_of_sounds, audio.default_encoder),
    kinds.SERIES: (series.default_augmentation, series.default_encoder),
    kinds.TABLES: (tables.default_augmentation, tables.default_encoder),
}
