"""The official weights of SimCLR v1 and v2 as networks of Keras."""

import collections
import dataclasses
import itertools
import pathlib
import re

import keras
import tensorflow as tf

# The schema of the files, generated from its public .proto; `full_name` in it
# is to be had in no other way.
from tensorflow.core.protobuf import trackable_object_graph_pb2

from keras_simclr import _checks, cards, classification, runs
from keras_simclr._files import check_is_free, staging
from keras_simclr.architectures import resnet_layers
from keras_simclr.copies import check_finite, plain_copy, weights_digest
from keras_simclr.export import export_encoder
from keras_simclr.model import SimCLRModel
from keras_simclr.networks import ProjectionHead, ResNet

SK_RATIO = 0.0625  # Of all published networks with selective kernels.
_DEPTHS = (18, 34, 50, 101, 152, 200)
_SIDES = {"imagenet": 224, "cifar": 32}
_LISTED = 20  # Names in a list of an error.


@dataclasses.dataclass(frozen=True)
class Published:
    """A published architecture.

    Attributes:
        name: As in `info["architecture"]`.
        parameters: Trainable parameters of the encoder.
        accuracies: Dictionary from the category, a part of the address, to the
            published top-1 accuracy on ImageNet in %.
    """

    name: str
    parameters: int
    accuracies: dict


def _published(categories, *rows):
    return tuple(
        Published(name, size, dict(zip(categories, accuracies, strict=True)))
        for name, size, *accuracies in rows
    )


# From google-research/simclr@383d414, README.md and
# tf2/colabs/imagenet_results.ipynb. Those of "pretrained" are linear probes'.
_V2 = _published(
    (
        "finetuned_1pct",
        "finetuned_10pct",
        "finetuned_100pct",
        "pretrained",
        "supervised",
    ),
    ("r50_1x_sk0", 23_508_032, 57.9, 68.4, 76.3, 71.7, 76.6),
    ("r50_1x_sk1", 35_215_584, 64.5, 72.1, 78.7, 74.6, 78.5),
    ("r50_2x_sk0", 93_907_072, 66.3, 73.9, 79.1, 75.6, 77.8),
    ("r50_2x_sk1", 140_306_048, 70.6, 77.0, 81.3, 77.7, 79.3),
    ("r101_1x_sk0", 42_500_160, 62.1, 71.4, 78.2, 73.6, 78.0),
    ("r101_1x_sk1", 64_662_304, 68.3, 75.1, 80.6, 76.3, 79.6),
    ("r101_2x_sk0", 169_771_136, 69.1, 75.8, 80.7, 77.0, 78.9),
    ("r101_2x_sk1", 257_132_224, 73.2, 78.8, 82.4, 79.0, 80.1),
    ("r152_1x_sk0", 58_143_808, 64.0, 73.0, 79.3, 74.5, 78.3),
    ("r152_1x_sk1", 88_940_896, 70.0, 76.5, 81.3, 77.2, 79.9),
    ("r152_2x_sk0", 232_253_568, 70.2, 76.6, 81.1, 77.4, 79.1),
    ("r152_2x_sk1", 353_398_528, 74.2, 79.4, 82.9, 79.4, 80.4),
    ("r152_3x_sk1", 794_704_160, 74.9, 80.1, 83.1, 79.8, 80.5),
)
_V1 = _published(
    ("pretrain", "finetune_10pct", "finetune_100pct"),
    ("r50_1x_sk0", 23_508_032, 69.1, 65.8, 75.6),
    ("r50_2x_sk0", 93_907_072, 74.2, 71.6, 79.2),
    ("r50_4x_sk0", 375_378_176, 76.6, 74.5, 80.8),
)
PUBLISHED = (*_V2, *_V1)
_CATEGORY = re.compile(
    r"pretrain(?:ed)?|finetuned?_\d+pct|supervised|distill_\w+"
)
# Their classifiers sit on the first layer of the projection head. (Those of
# v1, spelled finetune_10pct, do not.)
_ON_FIRST_LAYER = re.compile(r"finetuned_10?pct|distill_\w+")


@dataclasses.dataclass(frozen=True)
class Official:
    """Result of `load_official`: Keras models that share their weights.

    Attributes:
        encoder: `ResNet` from images to representations.
        projection_head: From representations to projections; or None.
        classifier: From images to logits; or None.
        info: Dictionary: what was found, and what was taken for what.
    """

    encoder: keras.Model
    projection_head: keras.Model | None
    classifier: keras.Model | None
    info: dict


def load_official(path, *, projection_layer=None):
    """Loads weights that the official SimCLR code wrote, v1 or v2.

    Only the table of the file's variables is read, no function: nothing
    foreign runs. Every variable is used once and every weight is filled, but
    for optimizer slots, counters and the second copy `ema_model/` of
    pretrained TF1 files. Images are float in [0, 1], not normalized.

    Args:
        path: A SavedModel; a TF1 or TF2 checkpoint (`model.ckpt-250228`,
            `ckpt-100`); or the directory of checkpoints, of which the one with
            the highest number is taken.
        projection_layer: Layers of the projection head before the classifier,
            0 for none. The variables do not tell. None: by the published name
            in the path: 1 for `finetuned_1pct`, `finetuned_10pct` and
            `distill_*`, else 0.

    Returns:
        An `Official`. `info` holds `architecture` (`r50_1x_sk0`), `depth`,
        `width_multiplier`, `sk_ratio`, `stem`, `format`, `projection_layers`,
        `classes`, `projection_layer` with its `projection_layer_reason`,
        `category` (a published one that the path names, or None),
        `published_accuracy` of that category and architecture (or None), and
        the numbers of `variables` and of those `ignored`.

    Raises:
        FileNotFoundError: If `path` does not exist.
        ValueError: If it is no checkpoint, is damaged, or holds other than
            the variables of an official network; if the classifier does not
            fit onto `projection_layer`.

    Example:

    ```python
    official = load_official("finetuned_10pct/r50_1x_sk0/saved_model")
    logits = official.classifier(images)  # (batch, 1000)
    model = simclr.SimCLRModel(official.encoder)
    ```

    References:
        - Chen et al. 2020, arXiv:2006.10029 (SimCLRv2).
        - google-research/simclr@383d414, README.md, tf2/resnet.py and
          tf2/model.py.

    Deviation: the official evaluation resizes the centre 7/8 of an image
        bicubically without antialiasing, `SimCLRModel` bilinearly with it. For
        published accuracies give `classifier` images resized in that way.
    """
    path = pathlib.Path(path)
    file = _open(path)
    expected, info = _match(file)
    info.update(_choose_layer(path, projection_layer, expected, info))
    encoder = ResNet(
        info["depth"],
        width_multiplier=info["width_multiplier"],
        sk_ratio=info["sk_ratio"],
        stem=info["stem"],
        input_shape=(*[_SIDES[info["stem"]]] * 2, 3),
    )
    head = ProjectionHead(
        info["projection_layers"],
        units=info["projection_units"] or 1,
        name="projection_head",
    )
    inputs = keras.Input(encoder.output_shape[1:], name="representations")
    projection_head = keras.Model(inputs, head(inputs), name="projection_head")
    images = keras.Input(encoder.input_shape[1:], name="images")
    x = encoder(images)
    for stage in head.stages[: info["projection_layer"]]:
        x = stage(x)
    logits = keras.layers.Dense(info["classes"] or 1, name="logits")
    classifier = keras.Model(images, logits(x), name="classifier")
    for variable in expected:
        layer = _layer(variable, encoder, head, logits)
        getattr(layer, variable.attribute).assign(file.read(variable.name))
    for network in (projection_head, classifier):
        check_finite(network)
    return Official(
        encoder=encoder,
        projection_head=projection_head if head.stages else None,
        classifier=classifier if info["classes"] else None,
        info=info,
    )


def named_layer(path):
    """What the published names in a path say about its classifier.

    Args:
        path: Path; the name nearest to its end counts.

    Returns:
        The category, or None, and the projection layer that its classifiers
        sit on: 1 or 0.

    Example:

    >>> named_layer("simclrv2/finetuned_1pct/r50_1x_sk0/saved_model")
    ('finetuned_1pct', 1)
    >>> named_layer("simclrv1/finetune_10pct/1x/saved_model")
    ('finetune_10pct', 0)
    """
    categories = _CATEGORY.findall(str(pathlib.Path(path).absolute()))
    if not categories:
        return None, 0
    return categories[-1], int(bool(_ON_FIRST_LAYER.fullmatch(categories[-1])))


def import_official(path, output_dir, *, projection_layer=None):
    """Turns official weights into a run directory, as if trained here.

    It holds `model.keras` and `summary.json`, for `evaluate`, `finetune`,
    `embed` and `export`; `export/`, as from `export_encoder`; and, if the file
    has a classifier, `classifier/`, as from `train_classifier`, which names
    classes by their number.

    Args:
        path: As `load_official`.
        output_dir: Directory to write, new or empty. It is complete or absent.
        projection_layer: As `load_official`.

    Returns:
        The `Official`.

    Raises:
        FileExistsError: If `output_dir` holds anything.

    Example:

    ```python
    import_official("pretrained/r50_1x_sk0/saved_model", "runs/r50")
    model = simclr.runs.load_model("runs/r50")
    ```
    """
    output_dir = pathlib.Path(output_dir)
    check_is_free(output_dir)
    official = load_official(path, projection_layer=projection_layer)
    head = ProjectionHead(0, name="projection_head")
    if official.projection_head is not None:
        head = official.projection_head.get_layer("projection_head")
    model = SimCLRModel(official.encoder, head)
    with staging(output_dir) as staged:
        runs.save_model(model, staged)
        summary = {"command": "import-official", **cards.versions()}
        about = {"official": official.info, "weights": weights_digest(model)}
        runs.update_summary(staged, {**summary, **about})
        export_encoder(model, staged / "export", about=about)
        if official.classifier is not None:
            network = keras.Sequential(
                [plain_copy(official.classifier), keras.layers.Softmax()],
                name="classifier",
            )
            names = [str(x) for x in range(official.info["classes"])]
            classification.write_classifier(
                model, network, staged / "classifier", names
            )
    return official


@dataclasses.dataclass(frozen=True)
class _Variable:
    """A variable of an official network, and its place in ours."""

    name: str  # In the file.
    shape: tuple
    part: str  # "encoder", "dense" or "norm" of the head, or "logits".
    attribute: str  # Of our layer.
    layer: str = ""  # Name of the encoder's layer.
    stage: int = 0  # Number of the head's stage.


def _layer(variable, encoder, head, logits):
    if variable.part == "encoder":
        return encoder.get_layer(variable.layer)
    if variable.part == "logits":
        return logits
    dense, norm, *_ = head.stages[variable.stage].layers
    return dense if variable.part == "dense" else norm


@dataclasses.dataclass(frozen=True)
class _File:
    """An open checkpoint."""

    path: pathlib.Path  # As it was given.
    format: str
    reader: object  # `tf.train.CheckpointReader`.
    keys: dict  # From our name of each variable to the file's.
    shapes: dict  # From our name to the shape.
    is_numbered: bool  # Whether our names are those of TF1, which count layers.
    ignored: int  # Number of variables left out by rule.

    def read(self, name):
        return _reading(
            self.path, lambda: self.reader.get_tensor(self.keys[name])
        )


def _reading(path, read):
    try:
        return read()
    except (tf.errors.OpError, IndexError) as error:  # Read beyond the end.
        raise ValueError(
            "`path` must be a whole checkpoint: its files are damaged or "
            f"incomplete. Received: path={str(path)!r} ({error}). Copy "
            "them again"
        ) from None


_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def _open(path):
    prefix = _prefix(path)
    reader = _reading(path, lambda: tf.train.load_checkpoint(str(prefix)))
    shapes = reader.get_variable_to_shape_map()
    if _GRAPH in shapes:
        table = _reading(path, lambda: reader.get_tensor(_GRAPH))
        is_saved_model = prefix.name == "variables"
        format = f"TF2 {'SavedModel' if is_saved_model else 'checkpoint'}"
        names, others, ignored = _by_structure(table)
        is_numbered = not names
        if is_numbered:
            names, others = _by_number(others)
    else:
        format = "TF1 checkpoint"
        names, others = _by_number(
            {key: key for key in shapes if not _IGNORED.fullmatch(key)}
        )
        ignored = len(shapes) - len(names) - len(others)
        is_numbered = True
    keys = dict(names)
    for key, name in others.items():
        keys[key if name in keys else name] = key
    return _File(
        path=path,
        format=format,
        reader=reader,
        keys=keys,
        shapes={name: tuple(shapes[key]) for name, key in keys.items()},
        is_numbered=is_numbered,
        ignored=ignored,
    )


def _prefix(path):
    """The checkpoint's path without `.index`."""
    if (path / "saved_model.pb").is_file():
        return path / "variables" / "variables"
    if pathlib.Path(f"{path}.index").is_file():
        return path
    indexes = sorted(path.glob("*.index"), key=_step)
    if indexes:
        return indexes[-1].with_suffix("")
    kind = ValueError if path.exists() else FileNotFoundError
    raise kind(
        "`path` must be a SavedModel (a directory with saved_model.pb), a "
        "checkpoint without .index, or a directory of checkpoints. Received: "
        f"path={str(path)!r}"
    )


def _step(path):
    return [int(number) for number in re.findall(r"\d+", path.name)]


# Children of the objects of the official code that lead to its variables.
_CHILDREN = re.compile(
    r"model|resnet_model|initial_conv_relu_max_pool|block_groups|layers"
    r"|projection_layers|shortcut_layers|conv_relu_dropblock_layers"
    r"|conv2d_bn_layers|conv2d_fixed_padding|conv2d(_[01])?|batch_norm_relu(_1)?"
    r"|_projection_head|supervised_head|linear_layers?|bn_relu|bn|dense|\d+"
    r"|kernel|bias|gamma|beta|moving_mean|moving_variance"
)
_STATE = ("optimizer", "global_step", "save_counter")
_IGNORED = re.compile(
    r"ema_model/.*|global_step|beta[12]_power|.*/(Momentum|Adam(_1)?)"
)
# Names of TF2 and TF1. TF2 counts all layers of a process.
_COUNTED = re.compile(
    r"(?:resnet|base_model)/(?:.*/)?(?:sync_)?"
    r"(?P<kind>conv2d|batch_normalization)(?:_(?P<number>\d+))?/(?P<variable>\w+)"
)
_IN_HEAD = re.compile(
    r"(?:projection_head|head_contrastive)/(?P<layer>nl_\d+)/(?:.*/)?(?:sync_)?"
    r"(?P<kind>dense|batch_normalization)(?:_\d+)?/(?P<variable>\w+)"
)
_IN_CLASSIFIER = re.compile(
    r"head_supervised/linear_layer/dense(?:_\d+)?/(?P<variable>\w+)"
)


def _by_structure(table):
    """Names variables by their place among the official code's objects."""
    # A SavedModel has anonymous keys, and its lists of variables may be empty.
    nodes = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
        table
    ).nodes
    places = _reached(nodes, [(0, "")], _CHILDREN.fullmatch)
    state = [
        (child.node_id, child.local_name)
        for child in nodes[0].children
        if child.local_name in _STATE
    ]
    slots = [
        (slot.slot_variable_node_id, "")
        for node in nodes
        for slot in node.slot_variables
    ]
    state = _reached(nodes, state + slots, lambda name: True)
    names, others, ignored = {}, {}, 0
    for number, node in enumerate(nodes):
        for value in node.attributes:
            if value.name != "VARIABLE_VALUE":
                continue
            if number in places:
                name = places[number].removeprefix("model/")
                names[name] = value.checkpoint_key
            elif number in state:
                ignored += 1
            else:
                name = value.full_name or value.checkpoint_key
                others[value.checkpoint_key] = name
    return names, others, ignored


def _reached(nodes, start, follows):
    """Dictionary from the nodes that `follows` leads to, to their paths."""
    paths, rest = {}, list(start)
    while rest:
        number, path = rest.pop()
        if number in paths:
            continue
        paths[number] = path
        rest += [
            (child.node_id, f"{path}/{child.local_name}".lstrip("/"))
            for child in nodes[number].children
            if follows(child.local_name)
        ]
    return paths


def _by_number(names):
    """Names variables as TF1 does; those it has no name for come second."""
    layers = [match for x in names.values() if (match := _COUNTED.fullmatch(x))]
    first = {
        kind: min(int(x["number"] or 0) for x in layers if x["kind"] == kind)
        for kind in {match["kind"] for match in layers}
    }
    ours, others = {}, {}
    for key, name in names.items():
        tf1 = _tf1_name(name, first)
        if tf1 is None or tf1 in ours:
            others[key] = name
        else:
            ours[tf1] = key
    return ours, others


def _tf1_name(name, first):
    if match := _COUNTED.fullmatch(name):
        kind = match["kind"]
        number = int(match["number"] or 0) - first[kind]
        return _numbered("base_model", kind, number, match["variable"])
    if match := _IN_HEAD.fullmatch(name):
        return "/".join(("head_contrastive", *match.groups()))
    if match := _IN_CLASSIFIER.fullmatch(name):
        return f"head_supervised/linear_layer/dense/{match['variable']}"
    return None


def _numbered(scope, kind, number, variable):
    suffix = f"_{number}" if number else ""
    return f"{scope}/{kind}{suffix}/{variable}"


def _match(file):
    """Finds the network whose variables the file holds, all and no others."""
    candidates = itertools.product(_DEPTHS, range(1, 5), (False, True), _SIDES)
    best = max(candidates, key=lambda x: _fit(file, x))
    depth, width, has_sk, stem = best
    encoder = list(_encoder_variables(*best, file.is_numbered))
    if not {variable.name for variable in encoder} & file.shapes.keys():
        raise ValueError(
            "`path` must hold an official SimCLR network. Received: "
            f"path={str(file.path)!r} with other variables:"
            + _listing("", sorted(file.shapes))
        )
    features = _features(depth, width)
    head = list(_head_variables(file, features))
    classifier = list(_classifier_variables(file, features))
    expected = [*encoder, *head, *classifier]
    name = f"r{depth}_{width}x_sk{int(has_sk)}"
    _check_variables(file, expected, name)
    kernels = [x.shape for x in head if x.part == "dense"]
    classes = [x.shape[0] for x in classifier if x.attribute == "bias"]
    return expected, {
        "architecture": name,
        "depth": depth,
        "width_multiplier": width,
        "sk_ratio": SK_RATIO if has_sk else 0.0,
        "stem": stem,
        "format": file.format,
        "projection_layers": len(kernels),
        "projection_units": kernels[-1][-1] if kernels else None,
        "classes": classes[0] if classes else None,
        "variables": len(expected),
        "ignored": file.ignored,
    }


def _features(depth, width):
    return resnet_layers(depth, width, "imagenet").blocks[-1].outputs


def _fit(file, candidate):
    variables = list(_encoder_variables(*candidate, file.is_numbered))
    shared = sum(file.shapes.get(x.name) == x.shape for x in variables)
    return 2 * shared - len(variables)


def _check_variables(file, expected, name):
    needed = {(variable.name, variable.shape) for variable in expected}
    found = set(file.shapes.items())
    if needed == found:
        return
    raise ValueError(
        "`path` must hold the variables of an official network, all and no "
        f"others. Received: path={str(file.path)!r}, which looks like {name} "
        "but for:"
        + _listing("- missing ", _described(needed - found))
        + _listing("+ unexpected ", _described(found - needed))
    )


def _described(variables):
    return [f"{name} {shape}" for name, shape in sorted(variables)]


def _listing(mark, names):
    lines = [f"\n {mark}{name}" for name in names[:_LISTED]]
    if len(names) > _LISTED:
        lines.append(f"\n {mark}{len(names) - _LISTED} more")
    return "".join(lines)


_NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def _encoder_variables(depth, width, has_sk, stem, is_numbered):
    """Yields the `_Variable`s of an encoder."""
    counts = collections.Counter()

    def of_layer(layer, place, kind, shapes):
        for variable, shape in shapes.items():
            name = f"{place}/{variable}"
            if is_numbered:
                name = _numbered("base_model", kind, counts[kind], variable)
            yield _Variable(name, shape, "encoder", variable, layer=layer)
        counts[kind] += 1

    layers = resnet_layers(depth, width, stem, SK_RATIO if has_sk else 0.0)
    for x in layers.convolutions():
        shapes = {"kernel": (x.size, x.size, x.inputs, x.outputs)}
        yield from of_layer(f"{x.name}_conv", x.official, "conv2d", shapes)
        if x.norm is not None:
            kind = "batch_normalization"
            shapes = dict.fromkeys(_NORM, (x.norm.channels,))
            yield from of_layer(
                f"{x.norm.name}_bn", x.norm.official, kind, shapes
            )


def _head_variables(file, features):
    """Yields the `_Variable`s of a head of as many layers as the file has."""
    top, norm = "_projection_head/linear_layers/", "bn_relu/bn"
    if file.is_numbered:
        top, norm = "head_contrastive/nl_", "batch_normalization"
    numbers = [
        int(name.removeprefix(top).split("/")[0])
        for name in file.shapes
        if name.startswith(top)
    ]
    layers = min(max(numbers, default=-1) + 1, 3)
    for number in range(layers):
        is_last = number == layers - 1
        kernel = f"{top}{number}/dense/kernel"
        units = features
        if is_last:
            *_, units = file.shapes.get(kernel) or (features,)
        shape = features, units
        yield _Variable(kernel, shape, "dense", "kernel", stage=number)
        for variable in _NORM:
            if not (is_last and variable == "beta"):
                name = f"{top}{number}/{norm}/{variable}"
                yield _Variable(name, (units,), "norm", variable, stage=number)


def _classifier_variables(file, features):
    top = "head_supervised" if file.is_numbered else "supervised_head"
    names = [f"{top}/linear_layer/dense/{x}" for x in ("kernel", "bias")]
    if not file.shapes.keys() & set(names):
        return
    # What the kernel takes depends on the layer that it sits on.
    kernel, bias = (file.shapes.get(name, ()) for name in names)
    classes = (kernel or bias)[-1]
    inputs = kernel[0] if kernel else features
    yield _Variable(names[0], (inputs, classes), "logits", "kernel")
    yield _Variable(names[1], (classes,), "logits", "bias")


def _choose_layer(path, projection_layer, expected, info):
    """The entries of `info` about the classifier's place, and what is known."""
    category, layer = named_layer(path)
    accuracies = [
        model.accuracies[category]
        for model in PUBLISHED
        if model.name == info["architecture"] and category in model.accuracies
    ]
    entries = {
        "category": category,
        "published_accuracy": accuracies[0] if accuracies else None,
        "projection_layer": None,
        "projection_layer_reason": "there is no classifier",
    }
    if projection_layer is not None:
        _checks.integer("projection_layer", projection_layer, minimum=0)
    if info["classes"] is None:
        return entries
    reason = "as asked"
    if projection_layer is None:
        projection_layer = layer
        reason = (
            f"the path says {category}"
            if category
            else "the path says nothing: the representation"
        )
    (inputs,) = [
        x.shape[0]
        for x in expected
        if x.part == "logits" and x.attribute == "kernel"
    ]
    outputs = _outputs(expected, info)
    if outputs.get(projection_layer) != inputs:
        fitting = [x for x, units in outputs.items() if units == inputs]
        raise ValueError(
            f"`projection_layer` must be one of {fitting or 'none'}, whose "
            f"outputs the classifier takes ({inputs}). Received: "
            f"projection_layer={projection_layer} ({reason}). Layers and their "
            f"outputs in path={str(path)!r}: {outputs}"
        )
    return {
        **entries,
        "projection_layer": projection_layer,
        "projection_layer_reason": reason,
    }


def _outputs(expected, info):
    """Dictionary from projection layers, 0 for none, to their outputs."""
    outputs = {0: _features(info["depth"], info["width_multiplier"])}
    for variable in expected:
        if variable.part == "dense":
            outputs[variable.stage + 1] = variable.shape[1]
    return outputs
