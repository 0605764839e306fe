"""Loads what was exported, without keras_simclr: `runtimes.py NAME DIR ...`.

Each directory holds `check.npz` and the export, `out`; one of photographs holds
`files`, too.
"""

import os
import pathlib
import re
import sys

import numpy as np


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5)


def moved(before, after):
    return any((a != b).any() for a, b in zip(before, after, strict=True))


def run_programs(directory, check, kind):
    """Runs those of README.md that need a runtime, on the images of a check."""
    os.chdir(directory / "out")
    text = pathlib.Path("README.md").read_text()
    first, *programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(first, names)
    assert names["images"].shape == check["images"].shape
    names["images"] = check["images"]
    count = 0
    for program in programs:
        if kind != next((x for x in OTHERS if x in program), "keras"):
            continue
        exec(program, names)
        found, expected = names.pop("embeddings"), check["expected"]
        if "encoded_images" in program:
            expected = check["of_files"][:1]
        if "_int8" in program:
            assert np.abs(found - expected).max() < 0.1 * expected.max()
        else:
            close(found, expected)
        count += 1
    return count


def run_keras(directory, check):
    import keras
    import tensorflow as tf

    files = []
    if "of_files" in check:
        files = [x.read_bytes() for x in sorted(directory.glob("files/*"))]
        (directory / "out" / "photo.jpg").write_bytes(files[0])
    assert run_programs(directory, check, "keras") == int(check["programs"])

    images, expected = check["images"], check["expected"]
    encoder = keras.models.load_model("encoder.keras")
    assert all(type(x).__module__.startswith("keras.") for x in encoder.layers)
    before = encoder.get_weights()
    head = keras.Sequential([encoder, keras.layers.Dense(2)])
    head.compile("sgd", "mse", run_eagerly=True)  # A step is faster so.
    head.fit(images, np.ones((len(images), 2)), verbose=0)
    assert moved(before, encoder.get_weights())

    if not pathlib.Path("saved_model").exists():
        return
    module = tf.saved_model.load("saved_model")
    close(module(images[:1], training=False), expected[:1])
    serve = module.signatures["serving_default"]
    close(serve(tf.constant(images))["default"], expected)
    if "other_size" in check:
        close(module(check["other_size"]), check["other_expected"])
    assert ("encoded_images" in module.signatures) == bool(files)
    if files:
        encode = module.signatures["encoded_images"]
        found = encode(image_bytes=tf.constant(files))["default"]
        close(found, check["of_files"])
    assert len(module.regularization_losses) == int(check["penalties"])
    for penalty in module.regularization_losses:
        assert float(penalty()) > 0
    # From here on, batch norm moves.
    with tf.GradientTape() as tape:
        trained = module(images, training=True)
        loss = tf.reduce_sum(trained[:, :3] ** 2)
    assert not np.allclose(trained, expected, atol=1e-5)
    assert len(module.trainable_variables) < len(module.variables)
    gradients = tape.gradient(loss, list(module.trainable_variables))
    assert all(gradient is not None for gradient in gradients)


def run_hub(directory, check):
    assert run_programs(directory, check, "tf_keras") == 1
    import tensorflow_hub as hub
    import tf_keras

    images = check["images"]
    close(hub.load("saved_model")(images), check["expected"])
    layer = hub.KerasLayer("saved_model", trainable=True)
    model = tf_keras.Sequential([layer, tf_keras.layers.Dense(2)])
    model.compile("sgd", "mse", run_eagerly=True)
    before = [v.numpy() for v in layer.trainable_variables]
    moments = [v.numpy() for v in layer.non_trainable_variables]
    model.fit(images, np.ones((len(images), 2)), verbose=0)
    assert moved(before, [v.numpy() for v in layer.trainable_variables])
    assert moved(moments, [v.numpy() for v in layer.non_trainable_variables])


def run_onnx(directory, check):
    assert run_programs(directory, check, "onnxruntime") == 1
    assert "tensorflow" not in sys.modules


OTHERS = {"tf_keras": run_hub, "onnxruntime": run_onnx}

if __name__ == "__main__":
    run = {**OTHERS, "keras": run_keras}[sys.argv[1]]
    for place in map(pathlib.Path, sys.argv[2:]):
        run(place, np.load(place / "check.npz"))
    assert "keras_simclr" not in sys.modules
