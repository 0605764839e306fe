"""A classifier trained on all labels, written to files, and used."""

import csv
import dataclasses
import functools
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

from keras_simclr import (
    elements,
    fit_data,
    kind_recipes,
    kinds,
    records,
    trials,
)
from keras_simclr._checks import finite_rows
from keras_simclr._files import (
    check_is_free,
    check_is_new,
    in_one_line,
    valid_names,
)
from keras_simclr.augmentations import as_views
from keras_simclr.checkpoints import FLAGS
from keras_simclr.classifiers import (
    CLASS_NAMES,
    checked_directory,
    class_names,
    load_classifier,
)
from keras_simclr.copies import check_finite, examples_for, plain_copy
from keras_simclr.csv_files import cell, path_cell
from keras_simclr.evaluation import Evaluation, evaluate, with_groups
from keras_simclr.evaluation_views import plain_view, with_evaluation_view
from keras_simclr.export import write_network
from keras_simclr.features import Features, check_fits, representation
from keras_simclr.finetuning import Tuner
from keras_simclr.flag_texts import as_flags
from keras_simclr.labelled import load_labelled
from keras_simclr.model import SimCLRModel
from keras_simclr.networks import ProjectionHead
from keras_simclr.pretrained import encoder_of
from keras_simclr.probes import linear_probe
from keras_simclr.recipe import Data
from keras_simclr.runs import as_seen

_OF_ONE_SHAPE = kinds.SERIES, kinds.TABLES
_RECIPES = ("linear", "finetune")


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Result of `train_classifier`; `str()` says how good it is.

    Attributes:
        recipe: `"linear"`, on the frozen encoder, or `"finetune"`.
        accuracy: Cross-validated, 0 to 1, on the images that chose the recipe.
        interval: 95 % interval of it, as from `sampling.interval`.
        class_names: Name of each probability.
        evaluation: The `Evaluation` that chose between the recipes.
    """

    recipe: str
    accuracy: float
    interval: tuple
    class_names: tuple
    evaluation: Evaluation

    def __str__(self):
        low, high = (100 * x for x in self.interval)
        return (
            f"{self.evaluation}\nChosen: {self.recipe}, with a cross-validated "
            f"accuracy of {self.accuracy:.1%} ({low:.1f} to {high:.1f})."
        )


def train_classifier(
    model,
    train,
    directory,
    *,
    class_names=(),
    projection_layer=0,
    data=None,
    seed=0,
    report=None,
    progress=None,
):
    """Trains a classifier by the better of two recipes, and writes it.

    The linear probe and fine-tuning are compared on random fifths of the
    images, held out; the better one is trained on all of them.

    - `classifier.keras`: plain Keras layers, for images of the encoder's size.
    - `saved_model/`: for images of any size, as from `export_encoder`.
    - `class_names.json`: list of the name of each probability.
    - `flags.txt`: how `predict` reads images; of tables `columns.keras`, and
      of series `columns.json`, too.

    Args:
        model: A `SimCLRModel`.
        train: Labelled images, as `evaluate`.
        directory: Directory to write, new or empty. It is complete or absent.
        class_names: As `evaluate`.
        projection_layer: As `fine_tune`.
        data: `recipe.Data` that tells how the images were read; None: images
            of 8 bits.
        seed: Integer.
        report: As in `evaluate`; it is also told, before anything is written,
            how good the classifier is.
        progress: As in `evaluate`.

    Returns:
        A `Classifier`.

    Raises:
        ValueError: If the encoder takes other images, or labels are missing,
            or a class has fewer than two images, or no plain layers do what
            the augmentation does at rest.
        FileExistsError: If `directory` holds anything.

    Example:

    ```python
    dataset = simclr.dataset_from_directory(
        "labelled", shuffle=False, drop_remainder=False
    )
    print(train_classifier(model, dataset, "my_classifier"))
    ```
    """
    check_is_free(directory)
    check_finite(model)
    plain_view(model)  # Refuses now what has no plain layers.
    say = functools.partial(model.kind.tell, report)
    examples = load_labelled(
        "train",
        train,
        class_names,
        kind=model.kind,
        check=functools.partial(check_fits, model),
        report=say,
        progress=progress,
    )
    examples = with_groups(examples, say)
    result = evaluate(
        model,
        examples,
        probes=_RECIPES,
        labels=("all",),
        thorough=True,
        baselines=False,
        projection_layer=projection_layer,
        seed=seed,
        report=report,
        progress=progress,
    )
    best = max(result.rows, key=lambda row: row["accuracy"])
    classes, size = np.unique(examples["labels"]), len(examples["labels"])
    what = f"{size:,} {model.kind.plural}"
    say(f"Training on all {what}: {best['probe']}.")
    network = _trained(
        model, examples, best["probe"], projection_layer, seed, progress
    )
    names = [str(x) for x in classes]
    classifier = Classifier(
        recipe=best["probe"],
        accuracy=best["accuracy"],
        interval=best["interval"],
        class_names=tuple(names),
        evaluation=result,
    )
    say(str(classifier))
    write_classifier(model, network, directory, names, data)
    return classifier


def _trained(model, examples, recipe, projection_layer, seed, progress):
    """A network from the evaluation view, trained by one of the recipes."""
    labels = examples["labels"]
    if recipe == "finetune":
        classes = np.unique(labels)
        tuner = Tuner(model, classes, projection_layer=projection_layer)
        tuner.fit(examples, seed, progress=progress)
        return tuner.network()
    features = Features({"h": representation(model)}, examples, progress)
    features, groups = features.arrays["h"], examples["groups"]
    probe = linear_probe(
        features, labels, features, labels, groups=groups, seed=seed
    )
    encoder = plain_copy(model.encoder)
    return keras.Sequential(
        [keras.Input(encoder.input_shape[1:]), encoder, probe.classifier],
        name="classifier",
    )


def write_classifier(
    model,
    network,
    directory,
    names,
    data=None,
    formats=("keras", "saved_model"),
):
    """Writes what `train_classifier` writes.

    `network` makes probabilities, of these names, of the model's evaluation
    view; `data` is as there, and `formats` are as in `write_network`.
    """
    reading = {"bits": 8} if data is None else records.reading(vars(data))
    files = {
        CLASS_NAMES: json.dumps(names, ensure_ascii=False, indent=2),
        FLAGS: as_flags(reading),
    }
    if data is not None and data.columns:
        path = pathlib.Path(data.columns)
        files[records.COLUMNS[data.kind]] = path.read_bytes()
    bits = reading.get("bits") or 8
    return write_network(
        model, network, directory, "classifier", files, bits, formats
    )


def export_classifier(directory, output_dir, *, formats):
    """Writes a classifier in other formats, and the names of its classes.

    Args:
        directory: What `train_classifier` wrote.
        output_dir: Directory to write, new or empty. It is complete or absent.
        formats: As `export_encoder`, but for `"hub"`; files are called
            `classifier` in place of `encoder`.

    Returns:
        `pathlib.Path` of the directory.

    Raises:
        FileExistsError: If `output_dir` holds anything.
        FileNotFoundError: If `directory` holds no classifier.
        ImportError: As `export_encoder`.
        ValueError: As `export_encoder`; or if the classifier does not bring
            images to its size as the command line's do.

    Example:

    ```python
    export_classifier("my_classifier", "my_app", formats=["litert_int8"])
    ```
    """
    if "hub" in formats:
        raise ValueError(
            "`formats` of a classifier are all but hub, whose pages are those "
            f"of encoders. Received: formats={list(formats)!r}"
        )
    whole, names = load_classifier(directory), class_names(directory)
    shape = whole.input_shape
    data = as_seen(Data(data=""), directory, shape[-1])
    kind = kinds.named(data.kind)
    # What is done to images at rest is made anew, for images of any size.
    network = encoder_of(whole) if kind is kinds.IMAGES else whole
    layer = kind_recipes.layer_at_rest(kind, shape)
    model = SimCLRModel(network, ProjectionHead(0), augmentation=layer)
    images = examples_for(whole)
    if trials.differ(
        with_evaluation_view(model, network)(images), whole(images)
    ):
        raise ValueError(
            "A classifier that is exported must see of an image what those of "
            f"the command line do. Received: {str(directory)!r}, which sees "
            "another part of it, or not in that size"
        )
    return write_classifier(model, network, output_dir, names, data, formats)


def write_predictions(directory, dataset, path, names=None, progress=None):
    """Writes a table of the class of every image: path, class, probability.

    As in `row_files.write_table`, nothing in it is a formula of a spreadsheet.

    Args:
        directory: What `train_classifier` wrote.
        dataset: `tf.data.Dataset` of batches of images.
        path: `pathlib.Path` of the CSV file to write.
        names: As `write_embeddings`, or None for the places themselves.
        progress: As in `extract_features`.

    Returns:
        Number of rows.

    Raises:
        FileExistsError: If `path` exists.
        FileNotFoundError: If `directory` holds no classifier.
        ValueError: If there are no images, or they are unusable, or have
            other channels than the classifier; or if its weights or
            probabilities are not finite.

    Example:

    ```python
    write_predictions("my_classifier", dataset, pathlib.Path("photos.csv"))
    ```
    """
    check_is_new("path", path)
    directory = checked_directory(directory)
    classifier = load_classifier(directory)
    shape = classifier.input_shape
    element = elements.unpack(dataset.element_spec)
    kind = kinds.named(as_seen(Data(data=""), directory, shape[-1]).kind)
    channels = shape[-1] if kind is kinds.IMAGES else None
    elements.Rules(kind, channels=channels).check_at_rest(element)
    found, wanted = element["images"].shape[1:], shape[1:]
    if kind in _OF_ONE_SHAPE and not found.is_compatible_with(wanted):
        raise ValueError(
            f"`dataset` must hold {kind.plural} of the classifier's shape "
            f"{wanted}. Received: {kind.plural} of shape {found}"
        )
    classes = class_names(directory)
    if len(classes) != classifier.output_shape[-1]:
        raise ValueError(
            f"{CLASS_NAMES} must name each of the classifier's outputs. "
            f"Received: {len(classes)} names for {classifier.output_shape[-1]} "
            f"in {str(directory)!r}. Copy it again"
        )
    module = _module(directory / "saved_model")
    names = None if names is None else list(names)
    total = None if names is None else len(names)
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "class", "probability"])
        for element in fit_data.checked_elements(
            dataset, progress, total, kind
        ):
            images, sizes = elements.images_and_sizes(element)
            if sizes is None:
                images = as_views(images, kind)
                probabilities = module(images).numpy()
            else:
                probabilities = module.on_canvas(images, sizes).numpy()
            places = elements.places_of(element, count)
            named = valid_names(
                str(x) if names is None else names[x] for x in places
            )
            finite_rows("Probabilities", probabilities, named)
            rows = zip(
                map(path_cell, named),
                (cell(classes[x]) for x in probabilities.argmax(axis=1)),
                probabilities.max(axis=1),
                strict=True,
            )
            table.writerows((*row, f"{p:.4f}") for *row, p in rows)
            count += len(places)
    return count


def _module(path):
    """The SavedModel of a classifier; whose it is, is the caller's to know."""
    try:
        return tf.saved_model.load(path)
    except Exception as error:  # Of any kind, from anywhere.
        text = " ".join(str(error).split())[:300]
        raise ValueError(
            "A classifier's directory must hold its whole saved_model. "
            f"Received: {str(path)!r} ({in_one_line(text)}). Copy it again"
        ) from error
