"""Writing an encoder for use without this package."""

import collections.abc
import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import _checks, cards, kinds
from keras_simclr._files import staging
from keras_simclr.augmentations import takes_sizes, to_float
from keras_simclr.copies import (
    check_can_be_saved,
    check_finite,
    plain_copy,
    weights_digest,
)
from keras_simclr.decoding import canvas_for, decode_jpeg_or_png
from keras_simclr.evaluation_views import (
    View,
    brought_to_rest,
    noise,
    view_of_model,
    with_evaluation_view,
)
from keras_simclr.model import SimCLRModel

_TRIED = 8  # Images that all formats must agree on.


def export_encoder(
    model,
    directory,
    *,
    formats=("keras", "saved_model"),
    about=None,
    report=None,
    progress=None,
):
    """Writes the encoder of a model for use without this package.

    All formats take float32 images in [0, 1], bring them to the evaluation
    view and return float32 representations. The view of an encoder for more
    than 32 pixels is the centre 7/8: images cropped already would be cropped
    twice.

    - `"keras"`, `encoder.keras`: plain Keras layers, for images of the
      encoder's size. It can be fine-tuned.
    - `"saved_model"`, `saved_model/`: a reusable SavedModel (TF Hub), for
      images of any size that the augmentation resizes. It can be fine-tuned.
      `__call__(images, training=False)` and the signature `serving_default`
      (output `default`) return representations; so does, for one channel or
      three, the signature `encoded_images` (input `image_bytes`) of JPEG and
      PNG files, which it reads in the channels and bits of training.
    - `"onnx"`, `encoder.onnx` (input `images`), and `"litert"`,
      `encoder.tflite`: for images of the encoder's size.
    - `"litert_int8"`, `encoder_int8.tflite`: the same with weights in 8 bits, a
      fourth of the size. What flows between the layers stays float32: its
      range in 8 bits could only be told from your images.
    - `"hub"`, `hub/`: the SavedModel as TF Hub and Kaggle Models take it, an
      archive with a page and metadata.

    `model_card.json` and `README.md` tell what is in the directory, how to use
    it, and by how much each format, loaded again, differs from the model.

    Args:
        model: A `SimCLRModel`.
        directory: Directory to write, new or empty. It is complete or absent.
        formats: Names of formats, as above.
        about: Dictionary, further entries of `model_card.json`, or None, as
            from `runs.about`. Its `rows` become a table in `README.md`; `bits`
            of its `recipe` are those in which files are read. What
            describes other weights than the model's is left out, with a
            warning: `Evaluation.summary` says which it describes.
        report: Function that is told, in words, what is being written.
        progress: Function that is told how many formats are written, and of how
            many.

    Returns:
        `pathlib.Path` of the directory.

    Raises:
        TypeError: If `model` is not a `SimCLRModel`.
        FileExistsError: If `directory` holds anything.
        OSError: If it cannot be written.
        ImportError: If a format needs a package that is not installed.
        ValueError: If `formats` has an unknown name; if the augmentation
            changes images at rest in a way that plain Keras layers cannot
            repeat; if weights or representations are not finite; or if a
            format, loaded again, disagrees with the model.

    Example:

    ```python
    export_encoder(model, "my_encoder", formats=["keras", "onnx", "litert"])
    encoder = keras.models.load_model("my_encoder/encoder.keras")
    ```

    References:
        - tensorflow/hub, docs/reusable_saved_models.md and
          docs/common_saved_model_apis/images.md.
    """
    if not isinstance(model, SimCLRModel):
        raise TypeError(
            f"`model` must be a SimCLRModel. Received: model={model!r}"
        )
    formats = check_formats(formats)
    check_finite(model)
    network, weights = plain_copy(model.encoder), weights_digest(model)
    bits = int((about or {}).get("recipe", {}).get("bits", 8))
    with staging(directory) as staged:
        parts = _parts(model, network, bits)
        view = parts.view
        images = noise(view.plain, _TRIED, network)
        expected = _one_by_one(
            lambda image: network(view.bring(image), training=False), images
        )
        _checks.finite_rows("Representations", expected)
        differences = {}
        for name in _in_turn(formats, report, progress):
            format = EXPORTS[name]
            if format.save is not None:
                path = staged / format.file
                difference = _saved(parts, name, path, images, expected)
                differences[name] = difference
        card = {
            **cards.describe(
                network,
                view.images,
                view.plain,
                crops=view.crops,
                kind=model.kind,
                about=cards.of_weights(about or {}, weights),
            ),
            "formats": {name: EXPORTS[name].file for name in formats},
            "round_trip": {
                "images": _TRIED,
                "largest_value": float(np.abs(expected).max()),
                "max_difference": differences,
            },
            "weights": weights,
        }
        text = cards.readme(card, _uses(card))
        (staged / "README.md").write_text(text, encoding="utf-8")
        (staged / "model_card.json").write_text(json.dumps(card, indent=2))
        for name in formats:
            if EXPORTS[name].pack is not None:
                EXPORTS[name].pack(card, staged)
    return pathlib.Path(directory)


def _in_turn(formats, report, progress):
    """Yields the names of formats, and tells of them before each."""
    for place, name in enumerate(formats):
        if progress:
            progress(place, len(formats))
        if report:
            report(f"Writing {name}: {EXPORTS[name].file}.")
        yield name
    if progress:
        progress(len(formats), len(formats))


def check_formats(formats):
    """Checks the names of formats, and that their packages are installed.

    Args:
        formats: Names, as `export_encoder` takes them.

    Returns:
        List of them, in the order of `EXPORTS`; with `"hub"` comes
        `"saved_model"`, which it packs.

    Raises:
        TypeError: If `formats` is a string.
        ValueError: If a name is unknown, or there is none.
        ImportError: If a package is missing.

    Example:

    >>> check_formats(["hub", "keras"])
    ['keras', 'saved_model', 'hub']
    """
    if isinstance(formats, str):
        raise TypeError(
            "`formats` must be a list of names. Received: "
            f"formats={formats!r}. Write formats=[{formats!r}]"
        )
    formats = {_checks.choice("formats", x, EXPORTS) for x in formats}
    if not formats:
        raise ValueError("`formats` must have a name. Received: no format")
    for name in sorted(formats):
        for package in EXPORTS[name].packages:
            if importlib.util.find_spec(package) is None:
                raise ImportError(
                    f"The format {name!r} needs `{package}`. Install it with: "
                    f"pip install 'keras_simclr[{name}]'"
                )
        formats.update(EXPORTS[name].needs)
    return [name for name in EXPORTS if name in formats]


def write_network(
    model,
    network,
    directory,
    name,
    files=None,
    bits=8,
    formats=("keras", "saved_model"),
):
    """Writes a network behind a model's evaluation view, whole or not at all.

    Args:
        model: The `SimCLRModel` that knows the evaluation view.
        network: Plain `keras.Model` that takes it.
        directory: Directory to write, new or empty.
        name: What files are called that `export_encoder` calls encoder.
        files: Dictionary from the names of further files to their contents,
            texts or bytes.
        bits: Of the images that it was trained on, as `decoding.decode`.
        formats: As `export_encoder`, but for `"hub"`. What a converter makes is
            loaded again, and tried.

    Returns:
        `pathlib.Path` of the directory.

    Example:

    ```python
    write_network(model, plain_copy(model.encoder), "my_encoder", "encoder")
    ```
    """
    check_finite(network)
    with staging(directory) as staged:
        parts = _parts(model, network, bits)
        images = noise(parts.view.plain, _TRIED, network)
        for format in check_formats(formats):
            path = staged / EXPORTS[format].file.replace("encoder", name)
            if EXPORTS[format].is_converted:
                expected = _one_by_one(parts.whole, images)
                _saved(parts, format, path, images, expected)
            else:
                EXPORTS[format].save(parts, path)
        for file, content in (files or {}).items():
            is_text = isinstance(content, str)
            content = content.encode() if is_text else content
            (staged / file).write_bytes(content)
    return pathlib.Path(directory)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What formats are made of."""

    model: SimCLRModel
    network: keras.Model  # Plain, from views.
    whole: keras.Model  # The same behind the evaluation view.
    view: View
    bits: int  # Of the images, as `decode`.


def _parts(model, network, bits):
    whole = with_evaluation_view(model, network)
    return _Parts(model, network, whole, view_of_model(model), bits)


def _one_by_one(network, images):
    """What a network makes of images, in the memory that one of them needs."""
    return np.concatenate(
        [np.asarray(network(image[None])) for image in images]
    )


def _uses(card):
    for name in card["formats"]:
        if EXPORTS[name].use:
            yield EXPORTS[name].use
        if EXPORTS[name].use_files and card["inputs"]["takes_files"]:
            yield EXPORTS[name].use_files


def _save_keras(parts, path):
    check_can_be_saved(parts.whole)
    parts.whole.save(path)


def _save_saved_model(parts, path):
    model, network, view = parts.model, parts.network, parts.view
    module = tf.train.Checkpoint()
    module.variables = [v.value for v in network.variables]
    module.trainable_variables = [v.value for v in network.trainable_variables]
    module.regularization_losses = [
        _penalty(v) for v in network.trainable_variables if v.regularizer
    ]
    # What layers saw and need at rest, such as a mean: no rows to draw from.
    module.seen = view.bring.get_concrete_function().variables
    images = tf.TensorSpec((None, *view.images), tf.float32, name="inputs")
    embed = tf.function(network, autograph=False)  # Traced twice in all.

    def represent(inputs, training=False):
        return embed(view.bring(inputs), training=training)

    module.__call__ = tf.function(represent, autograph=False)
    for training in (False, True):
        module.__call__.get_concrete_function(images, training=training)
    module.__call__.get_concrete_function(images)
    if takes_sizes(model.augmentation):
        module.on_canvas = tf.function(
            lambda images, sizes: embed(
                brought_to_rest(model, images, sizes), training=False
            ),
            input_signature=[
                tf.TensorSpec(images.shape, _dtype(parts)),
                tf.TensorSpec((None, model.kind.sized), tf.int32),
            ],
            autograph=False,
        )
    serve = tf.function(
        lambda inputs: {"default": represent(inputs)}, autograph=False
    )
    signatures = {"serving_default": serve.get_concrete_function(images)}
    if cards.takes_files(view.images, view.plain):
        signatures["encoded_images"] = _serve_files(view, embed, parts.bits)
    tf.saved_model.save(module, path, signatures=signatures)


def _dtype(parts):
    are_bytes = parts.model.kind is kinds.IMAGES and parts.bits == 8
    return tf.uint8 if are_bytes else tf.float32


def _serve_files(view, embed, bits):
    canvas_size, channels = canvas_for(max(view.shape[:2])), view.shape[2]

    def view_of(contents):
        image = decode_jpeg_or_png(contents, canvas_size, channels, bits)
        return view.bring(to_float(image)[None])[0]

    def serve(image_bytes):
        views = tf.map_fn(
            view_of,
            image_bytes,
            fn_output_signature=tf.TensorSpec(view.shape, tf.float32),
        )
        return {"default": embed(views, training=False)}

    return tf.function(serve, autograph=False).get_concrete_function(
        tf.TensorSpec((None,), tf.string, name="image_bytes")
    )


def _penalty(variable):
    return tf.function(
        lambda: variable.regularizer(variable), input_signature=[]
    )


def _signature(network):
    """What converters call the input: else its name is the encoder's own."""
    return [tf.TensorSpec(network.input_shape, tf.float32, name="images")]


def _save_onnx(parts, path):
    network = parts.whole
    network(noise(network.input_shape[1:], 1))  # Keras asks for a call.
    with warnings.catch_warnings():
        # Keras 3.15 looks for what NumPy 2 no longer has.
        warnings.simplefilter("ignore", FutureWarning)
        network.export(
            path,
            format="onnx",
            verbose=False,
            input_signature=_signature(network),
        )


def _save_litert(parts, path, **kwargs):
    parts.whole.export(
        path,
        format="litert",
        verbose=False,
        input_signature=_signature(parts.whole),
        **kwargs,
    )


def _save_litert_int8(parts, path):
    _save_litert(parts, path, optimizations=[tf.lite.Optimize.DEFAULT])


def _load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _load_litert(path):
    with warnings.catch_warnings():
        # TensorFlow announces its removal; what replaces it is another package.
        warnings.simplefilter("ignore", UserWarning)
        interpreter = tf.lite.Interpreter(str(path))
    run = interpreter.get_signature_runner()
    (name,) = run.get_input_details()
    return lambda images: run(**{name: images})["output_0"]


def _saved(parts, name, path, images, expected):
    """Saves in a format; by how much it differs when it is loaded again."""
    with _readable_errors(name):
        EXPORTS[name].save(parts, path)
        found = _one_by_one(EXPORTS[name].load(path), images)
    return _difference(name, found, expected)


@contextlib.contextmanager
def _readable_errors(name):
    try:
        yield
    except (OSError, MemoryError, tf.errors.OpError):
        raise
    except Exception as error:  # Converters raise all kinds.
        if not EXPORTS[name].is_converted:
            raise
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"The format {name!r} must be able to express the encoder. "
            f"Received: {reason}. Leave it out of `formats`."
        ) from error


def _difference(name, found, expected):
    difference = float("inf")
    if found.shape == expected.shape:
        difference = float(np.abs(found - expected).max())
    largest = float(np.abs(expected).max())
    tolerance = EXPORTS[name].tolerance
    if tolerance is not None and not difference <= tolerance * largest:
        raise ValueError(
            f"The format {name!r}, loaded again, must return what the model "
            f"does. Received: representations that differ by {difference:.3g}, "
            f"where the largest value is {largest:.3g}. Leave it out of "
            "`formats`."
        )
    return difference


@dataclasses.dataclass(frozen=True)
class ExportFormat:
    """A format of `export_encoder`.

    Attributes:
        file: Name of what it consists of, in the directory.
        use: Markdown: how it is used. It stands in `README.md`.
        use_files: The same for image files, where it takes them.
        save: Function of the encoder's parts and a path, or None.
        load: Function from that path to a function from images to
            representations.
        tolerance: By how much these may differ from the model's, as a share
            of the largest value; None: by any amount.
        is_converted: Whether a converter writes it, which cannot express
            every encoder.
        packages: Packages that it needs; the extra that installs them has the
            format's name.
        needs: Formats that are written with it.
        pack: Function of the card and the directory that makes it of what all
            others have written there, or None.
    """

    file: str
    use: str = ""
    use_files: str = ""
    save: collections.abc.Callable | None = None
    load: collections.abc.Callable | None = None
    tolerance: float | None = 1e-3
    is_converted: bool = False
    packages: tuple = ()
    needs: tuple = ()
    pack: collections.abc.Callable | None = None


EXPORTS = {
    "keras": ExportFormat(
        "encoder.keras",
        save=_save_keras,
        load=keras.models.load_model,
        use="""\
Keras 3, plain layers; `encoder.trainable` decides whether a classifier on top
of it fine-tunes it:

```python
import keras

encoder = keras.models.load_model("encoder.keras")
embeddings = encoder.predict(images)
```
""",
    ),
    "saved_model": ExportFormat(
        "saved_model",
        save=_save_saved_model,
        load=tf.saved_model.load,
        use="""\
The SavedModel, in TensorFlow, in Keras 3 (as a layer that is not trained) and
in tf_keras with TensorFlow Hub (where it can be fine-tuned):

```python
import tensorflow as tf

module = tf.saved_model.load("saved_model")
embeddings = module(images)
```

```python
import keras

layer = keras.layers.TFSMLayer("saved_model", call_endpoint="serving_default")
embeddings = layer(images)["default"]
```

```python
# pip install tensorflow-hub tf-keras 'setuptools<81'
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # Before TensorFlow is imported.
import tensorflow_hub as hub
import tf_keras

layer = hub.KerasLayer("saved_model", trainable=True)
classifier = tf_keras.Sequential([layer, tf_keras.layers.Dense(10, "softmax")])
embeddings = layer(images)
```
""",
        use_files="""\
From the bytes of JPEG and PNG files, of any size each:

```python
import pathlib

import tensorflow as tf

module = tf.saved_model.load("saved_model")
files = [pathlib.Path("photo.jpg").read_bytes()]
embed = module.signatures["encoded_images"]
embeddings = embed(image_bytes=tf.constant(files))["default"]
```
""",
    ),
    "onnx": ExportFormat(
        "encoder.onnx",
        packages=("onnx", "tf2onnx", "onnxruntime"),
        save=_save_onnx,
        load=_load_onnx,
        is_converted=True,
        use="""\
ONNX Runtime:

```python
import onnxruntime

session = onnxruntime.InferenceSession("encoder.onnx")
(embeddings,) = session.run(None, {"images": images})
```
""",
    ),
    "litert": ExportFormat(
        "encoder.tflite",
        save=_save_litert,
        load=_load_litert,
        is_converted=True,
        use=cards.USE_LITERT.format(note="", file="encoder.tflite"),
    ),
    "litert_int8": ExportFormat(
        "encoder_int8.tflite",
        save=_save_litert_int8,
        load=_load_litert,
        is_converted=True,
        tolerance=None,
        use=cards.USE_LITERT.format(
            note=", the weights in 8 bits", file="encoder_int8.tflite"
        ),
    ),
    "hub": ExportFormat("hub", needs=("saved_model",), pack=cards.write_hub),
}
