"""Pretraining and probing for the claims."""

import math

import numpy as np

import keras_simclr as simclr
from keras_simclr.recipe import Recipe

# The defaults of `keras-simclr pretrain`, made small; of a first version, all
# that concerns the views.
RECIPE = {
    "data": "fashion_mnist",
    "images": 4096,
    "width": 0.25,
    "batch_size": 128,
    "epochs": 6,
    "learning_rate": Recipe.learning_rate,
    "smallest_crop": Recipe.smallest_crop,
    "evaluated_on": "test",
}


def recipe_of(config, images):
    """The `Recipe` of a configuration for these images."""
    steps = len(images) // config["batch_size"]
    return Recipe(
        width_multiplier=config["width"],
        batch_size=config["batch_size"],
        epochs=config["epochs"],
        learning_rate=config["learning_rate"],
        # A tenth of all steps, rounded down.
        warmup_epochs=config["epochs"] * steps // 10 / steps,
        smallest_crop=config["smallest_crop"],
        strength=1.0,
        blur_rate=0.5,
        seed=config["seed"],
    )


def pretrain(
    config,
    images,
    *,
    loss=None,
    layers=Recipe.projection_layers,
    **augmentations,
):
    """Trains as `keras-simclr pretrain` does.

    Args:
        config: Dictionary with the keys of `RECIPE`, and `seed`.
        images: Array.
        loss: As `compile` takes it, or None for NT-Xent.
        layers: Layers of the projection head.
        **augmentations: `augmentation` and `second_augmentation` of
            `SimCLRModel`; without the first, the recipe's.

    Returns:
        The `SimCLRModel`, and the last epoch's measures.
    """
    recipe, shape = recipe_of(config, images), images.shape[1:]
    augmentations.setdefault("augmentation", recipe.augmentation(shape))
    model = simclr.SimCLRModel(
        recipe.encoder(shape),
        simclr.ProjectionHead(layers),
        seed=recipe.seed,
        **augmentations,
    )
    steps = len(images) // recipe.batch_size
    model.compile(recipe.optimizer(steps), loss or recipe.loss())
    history = model.fit(
        images,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        verbose=0,
    )
    return model, {k: v[-1] for k, v in history.history.items()}


def probes(config, model, data, **transforms):
    """Accuracies of linear probes on the representations.

    Args:
        config: Dictionary with `evaluated_on` and `seed`.
        model: A `SimCLRModel`.
        data: `Data`.
        **transforms: By the names of further measures, functions from
            representations to what is probed, too.

    Returns:
        Dictionary of shares of the test images: `accuracy` and the others.
    """
    train, test = data.train, getattr(data, config["evaluated_on"])
    features = [simclr.extract_features(model, x[0]) for x in (train, test)]

    def accuracy(train_features, test_features):
        return simclr.linear_probe(
            train_features,
            train[1],
            test_features,
            test[1],
            seed=config["seed"],
        ).accuracy

    result = {"accuracy": accuracy(*features)}
    for name, transform in transforms.items():
        transformed = [np.asarray(transform(x), "float32") for x in features]
        result[name] = accuracy(*transformed)
    return result


def train_and_probe(config, data, **options):
    """Pretrains and probes.

    Args:
        config: As `pretrain`.
        data: `Data`.
        **options: Of `pretrain`.

    Returns:
        Dictionary of measures; of a model that diverges all are 0.
    """
    model, last = pretrain(config, data.train[0], **options)
    if not math.isfinite(last["loss"]):
        return {"accuracy": 0.0, "contrastive_accuracy": 0.0}
    return {
        **probes(config, model, data),
        "contrastive_accuracy": round(last["contrastive_accuracy"], 4),
        "loss": round(last["loss"], 4),
    }
