"""What stands beside an exported encoder: model card, pages, archive."""

import gzip
import html
import importlib.metadata
import json
import pathlib
import re
import shlex
import tarfile
import warnings

import keras
import tensorflow as tf

from keras_simclr import kinds
from keras_simclr._files import in_one_line

# As Kaggle's own templates have it: its client refuses to upload the first.
_OWNER = "INSERT_OWNER_SLUG_HERE"
_LICENSE = "INSERT_LICENSE_NAME_HERE"
_LICENSE_NOTE = (
    "The weights belong to whoever trained them; publish them under the "
    "licence of your choice, as far as that of your images allows."
)
_OFFICIAL_LICENSE_NOTE = (
    "The weights were imported and belong to whoever trained them: their "
    "licence is the one that they came with. What google-research/simclr "
    "publishes is under the Apache License 2.0."
)
_ARCHIVE = "encoder.tar.gz"
# Entries of a run's summary that describe weights. The first say which in
# `evaluation`, the others in `weights`, each with a digest.
EVALUATED = ("rows", "gains", "evaluation")
TRAINED = ("official", "epochs_trained", "steps_trained")
# Believed where `weights` are not recorded.
_MADE_OF = ("recipe", "data", "start", "teacher")

_README = """\
# {name}

{kind}: it makes a representation of {features} numbers of each input.
Written by keras_simclr.

## Input

{contract}

## Use

```python
import numpy as np

images = np.random.default_rng(0).random({shape}, "float32")
```

{uses}
## How it was checked

Each format was loaded again and given {tried} random inputs. Largest difference
from the model's own representations, whose largest value is {largest:.3g}:

| format | largest difference |
|---|---|
{differences}

{origin}## Licence

{license}
"""
# How an encoder for LiteRT is used.
USE_LITERT = """\
LiteRT, here with TensorFlow's interpreter; `ai_edge_litert.interpreter` has the
same{note}:

```python
import tensorflow as tf

interpreter = tf.lite.Interpreter("{file}")
run = interpreter.get_signature_runner()
(name,) = run.get_input_details()
embeddings = run(**{{name: images}})["output_0"]
```
"""


def describe(
    network,
    image_shape,
    view_shape,
    *,
    crops=False,
    kind=kinds.IMAGES,
    about=None,
):
    """The entries of a model card that follow from the encoder itself.

    Args:
        network: Plain `keras.Model` from views to representations.
        image_shape: Shape of the images that the SavedModel takes.
        view_shape: Shape of those that all formats take.
        crops: Whether the edges of images are cut off first.
        kind: What `images` are, a `kinds.Kind`.
        about: Dictionary of what else is known, or None. `official` in it, as
            `import_official` records it, tells where the weights are from.

    Returns:
        Dictionary that JSON can hold, with the entries of `about`.

    Example:

    >>> encoder = simclr.ResNet(10, stem="cifar", input_shape=(8, 8, 3))
    >>> describe(encoder, (None, None, 3), (8, 8, 3))["outputs"]
    {'dtype': 'float32', 'shape': [None, 512]}
    """
    about = without_places(about or {})
    return {
        "name": network.name,
        "inputs": {
            "dtype": "float32",
            "shape": [None, *view_shape],
            "saved_model_shape": [None, *image_shape],
            "takes_files": takes_files(image_shape, view_shape),
            "contract": _contract(image_shape, view_shape, crops, kind)
            + _rate_in_words(about),
        },
        "outputs": {"dtype": "float32", "shape": [*network.output_shape]},
        "parameters": network.count_params(),
        "license": (
            _OFFICIAL_LICENSE_NOTE if "official" in about else _LICENSE_NOTE
        ),
        "versions": versions(),
        **about,
    }


def of_weights(about, weights):
    """What is known of a run, without what describes other weights.

    Args:
        about: Dictionary, entries of `summary.json`.
        weights: Digest, as from `copies.weights_digest`.

    Returns:
        Dictionary. A warning names what describes other weights, or does not
        say which, as in version 0.1.

    Example:

    >>> result = {"rows": [], "evaluation": {"weights": "a7"}}
    >>> of_weights({"data": {}, **result}, "a7") == {"data": {}, **result}
    True
    """
    described = {
        **dict.fromkeys(EVALUATED, about.get("evaluation", {}).get("weights")),
        **dict.fromkeys(TRAINED, about.get("weights")),
        **dict.fromkeys(_MADE_OF, about.get("weights", weights)),
    }
    left_out = {k for k in about.keys() & described if described[k] != weights}
    if left_out:
        warnings.warn(
            "What is known of a run must be of the weights at hand. Received: "
            f"{', '.join(sorted(left_out))} of other weights, or of unknown "
            "ones; they are left out. `keras-simclr evaluate` makes new rows.",
            stacklevel=3,
        )
    kept = {k: v for k, v in about.items() if k not in left_out}
    return {k: v for k, v in kept.items() if k != "weights" or v == weights}


def without_places(value):
    """The same with the names of files alone: cards are for others to read."""
    if isinstance(value, dict):
        return {
            without_places(name): without_places(each)
            for name, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_places(each) for each in value]
    if isinstance(value, str) and pathlib.PurePath(value).is_absolute():
        return pathlib.PurePath(value).name
    return value


def takes_files(image_shape, view_shape):
    """Whether an encoder can be given image files, which become RGB or grey.

    Args:
        image_shape: As in `describe`.
        view_shape: As in `describe`.

    Returns:
        Boolean.

    Example:

    >>> takes_files((None, None, 3), (8, 8, 3))
    True
    """
    is_usual = image_shape in ((None, None, 1), (None, None, 3))
    return is_usual and None not in view_shape


def _rate_in_words(about):
    """How often sounds are sampled, if a recipe tells it."""
    rate = about.get("recipe", {}).get("rate")
    return f" {rate} samples are a second, of one channel." if rate else ""


def _contract(image_shape, view_shape, crops, kind):
    if kind is not kinds.IMAGES or len(view_shape) != 3:
        shape = ", ".join(map(str, view_shape))
        text = f"float32 of shape (batch, {shape})"
        if kind in (kinds.AUDIO, kinds.SERIES, kinds.TABLES):
            text = f"{kind.plural.capitalize()} as {text}"
        if image_shape != view_shape:
            text += f". The SavedModel takes {kind.plural} of any length, too"
        return f"{text}."
    height, width, channels = view_shape
    colors = {1: "gray", 3: "RGB"}.get(channels, f"{channels} channels")
    text = (
        f"Images as float32 in [0, 1], {colors}, of shape (batch, height, "
        f"width, {channels}), any batch size"
    )
    if None in view_shape:
        return f"{text}, any height and width. They are not resized."
    if channels not in (1, 3):
        text += " (so no format takes the bytes of JPEG or PNG files)"
    size = f"{height} x {width} pixels"
    crop = ""
    if crops:
        crop = (
            " All formats cut out the centre 7/8 of height and width first, as "
            "the evaluation does: give them whole images, because what is "
            "cropped already would be cropped twice."
        )
    if image_shape == view_shape:
        return f"{text}, {size}.{crop}"
    return (
        f"{text}. The SavedModel takes any height and width and brings images "
        f"to {size} itself; all other formats take {size}.{crop}"
    )


def readme(card, uses):
    """The text of `README.md` beside an exported encoder.

    Args:
        card: Dictionary, as `model_card.json` holds it.
        uses: List of strings: how each format is used.

    Returns:
        String, Markdown. Its programs run in the directory, for `images` as
        the first makes them.

    Example:

    ```python
    card = json.loads(pathlib.Path("my_encoder/model_card.json").read_text())
    print(readme(card, [export.EXPORTS["keras"].use]))
    ```
    """
    result = card["round_trip"]
    kind = "A SimCLR encoder"
    if teacher := card.get("teacher"):
        name, weights = map(_as_text, (teacher["name"], teacher["weights"]))
        kind = (
            f"An encoder taught by {name}, of the weights {weights} (SHA-256)"
        )
    if official := card.get("official"):
        architecture = official.get("architecture", "an unknown architecture")
        kind = (
            "An encoder of weights that the official SimCLR code wrote, "
            f"{_as_text(architecture)}"
        )
    return _README.format(
        kind=kind,
        name=_as_text(card["name"]),
        features=card["outputs"]["shape"][-1],
        contract=card["inputs"]["contract"],
        shape=[4, *(x or 64 for x in card["inputs"]["shape"][1:])],
        uses="\n".join(uses),
        tried=result["images"],
        largest=result["largest_value"],
        differences="\n".join(
            f"| {name} | {difference:.2g} |"
            for name, difference in result["max_difference"].items()
        ),
        origin="".join(_origin(card)),
        license=card["license"],
    )


def _origin(card):
    """Evaluation, recipe, data and versions, as far as they are known."""
    if card.get("rows"):
        yield (
            "## What it is worth\n\n"
            "| features | probe | labels | accuracy, % | 95 % interval |\n"
            "|---|---|---|---|---|\n"
        )
        for row in card["rows"]:
            low, high = (100 * x for x in row["interval"])
            yield (
                f"| {_as_text(row['features'])} | {_as_text(row['probe'])} | "
                f"{_as_text(row['labels'])} | {100 * row['accuracy']:.1f} | "
                f"{low:.1f} to {high:.1f} |\n"
            )
        yield "\n"
    if start := card.get("start"):
        yield (
            f"## Start\n\n{_as_text(start['name'])}, an encoder with the "
            f"weights {_as_text(start['weights'])} (SHA-256)\n\n"
        )
    if card.get("recipe"):
        flags = shlex.join(f"--{k}={v}" for k, v in card["recipe"].items())
        flags = in_one_line(flags)
        command = "distill" if "teacher" in card["recipe"] else "pretrain"
        yield f"## Recipe\n\n```shell\nkeras-simclr {command} {flags}\n```\n\n"
    if card.get("weights"):
        yield (
            f"## Weights\n\n{_as_text(card['weights'])} (SHA-256, as from "
            "`keras_simclr.copies.weights_digest` of the model)\n\n"
        )
    for name in ("data", "versions"):
        if card.get(name):
            pairs = ", ".join(
                f"{_as_text(k)} {_as_text(v)}" for k, v in card[name].items()
            )
            yield f"## {name.capitalize()}\n\n{pairs}\n\n"


def _as_text(name):
    """What people gave a name, in Markdown: it shows as it is."""
    text = html.escape(in_one_line(str(name)))
    if re.fullmatch("[A-Za-z0-9]+(_[A-Za-z0-9]+)*", text):  # Of ours, mostly.
        return text
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", text)


def write_hub(card, directory):
    """Writes what TF Hub and Kaggle Models want beside a SavedModel.

    Args:
        card: Dictionary, as `model_card.json` holds it.
        directory: `pathlib.Path` with `README.md` and `saved_model/`; gets
            `hub/`.

    Example:

    ```python
    write_hub(card, pathlib.Path("my_encoder"))
    ```

    References:
        - tensorflow/hub, docs/writing_documentation.md.
        - Kaggle/kaggle-api, docs/models_metadata.md.
    """
    kaggle = directory / "hub" / "kaggle"
    kaggle.mkdir(parents=True)
    pack(directory / "saved_model", kaggle / _ARCHIVE)
    text = (directory / "README.md").read_text(encoding="utf-8")
    (directory / "hub" / "1.md").write_text(_page(card, text), encoding="utf-8")
    for file, metadata in _metadata(card, text).items():
        (kaggle / file).write_text(json.dumps(metadata, indent=2))


def pack(directory, path):
    """Packs what a directory holds; equal content makes equal archives.

    Args:
        directory: `pathlib.Path` of it; its files are at the archive's root.
        path: `pathlib.Path` of the `.tar.gz` file to write.

    Example:

    ```python
    pack(pathlib.Path("my_encoder/saved_model"), pathlib.Path("a.tar.gz"))
    ```
    """

    def anonymous(info):
        info.mtime = info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mode = 0o755 if info.isdir() else 0o644
        return info

    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as archive,
    ):
        for part in sorted(directory.rglob("*")):
            name = part.relative_to(directory).as_posix()
            archive.add(part, name, recursive=False, filter=anonymous)


def _page(card, text):
    """TF Hub's page: a title, a line, tags, and then what one likes."""
    _, line, body = text.split("\n\n", 2)
    tags = {
        "asset-path": f"kaggle/{_ARCHIVE}",
        "task": "image-feature-vector",
        "fine-tunable": "true",
        "format": "saved_model_2",
        "license": _LICENSE,
    }
    if len(card["inputs"]["shape"]) != 4:
        del tags["task"]
    comments = "\n".join(f"<!-- {k}: {v} -->" for k, v in tags.items())
    name = f"{_OWNER}/{_slug(card)}/1"
    line = line.replace("\n", " ")
    return f"# Module {name}\n\n{line}\n\n{comments}\n\n{body}"


def _metadata(card, text):
    slug = _slug(card)
    return {
        "model-metadata.json": {
            "ownerSlug": _OWNER,
            "title": card["name"],
            "slug": slug,
            "subtitle": "SimCLR encoder: images to representations",
            "isPrivate": True,
            "description": text,
            "publishTime": "",
            "provenanceSources": "",
        },
        "model-instance-metadata.json": {
            "ownerSlug": _OWNER,
            "modelSlug": slug,
            "instanceSlug": "default",
            "framework": "tensorFlow2",
            "overview": card["inputs"]["contract"],
            "usage": text,
            "licenseName": _LICENSE,
            "fineTunable": True,
            "trainingData": [],
            "modelInstanceType": "Base Model",
            "baseModelInstance": "",
            "externalBaseModelUrl": "",
        },
    }


def _slug(card):
    return re.sub("[^a-z0-9]+", "-", card["name"].lower()).strip("-")


def versions():
    """Versions that a result depends on.

    Returns:
        Dictionary.

    Example:

    >>> sorted(versions())
    ['keras', 'keras_simclr', 'tensorflow']
    """
    return {
        "keras_simclr": importlib.metadata.version("keras_simclr"),
        "keras": keras.version(),
        "tensorflow": tf.__version__,
    }
