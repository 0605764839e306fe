"""Goes on with the training of saved models, in a process of its own."""

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import copies

IMAGES = np.random.default_rng(0).random((6, 8, 8, 3), "float32")


def go_on(model):
    """What a step leaves: weights, moments, optimizer, views, loss, digest."""
    batches = tf.data.Dataset.from_tensors(IMAGES)
    history = model.fit(batches, verbose=0).history
    step = model.optimizer.iterations
    return [
        *(variable.numpy() for variable in model.weights),
        *(variable.numpy() for variable in model.optimizer.variables),
        *(view.numpy() for view in model.views(IMAGES, step=step)),
        *history["loss"],
        model(IMAGES).numpy(),
        np.array(copies.weights_digest(model)),
    ]


def main(directory):
    tf.config.run_functions_eagerly(True)
    for path in sorted(pathlib.Path(directory).glob("*.keras")):
        if path.stem == "own":
            import own_parts  # noqa: F401
        model = keras.models.load_model(path)
        np.savez(path.with_suffix(".npz"), *go_on(model))


if __name__ == "__main__":
    main(sys.argv[1])
