"""The official weights of SimCLR v1 and v2 as networks of Keras."""

import collections
import dataclasses
import itertools
import pathlib
import re

import keras

from keras_simclr import _checks, cards, classification, runs
from keras_simclr._files import check_is_free, staging
from keras_simclr.architectures import resnet_layers
from keras_simclr.copies import check_finite, plain_copy, weights_digest
from keras_simclr.export import export_encoder
from keras_simclr.model import SimCLRModel
from keras_simclr.networks import ProjectionHead, ResNet
from keras_simclr.official_files import numbered, open_file, told_layers

SK_RATIO = 0.0625  # Of all published networks with selective kernels.
_PARTS = 4  # Of an import.
_DEPTHS = (18, 34, 50, 101, 152, 200)
_SIDES = {"imagenet": 224, "cifar": 32}
_MOST_HEAD_LAYERS = 3
_LISTED = 20  # Names in a list of an error.


@dataclasses.dataclass(frozen=True)
class Published:
    """A published architecture.

    Attributes:
        name: As in `info["architecture"]`.
        parameters: Trainable parameters of the encoder.
    """

    name: str
    parameters: int


# From google-research/simclr@383d414, README.md and
# tf2/colabs/imagenet_results.ipynb.
PUBLISHED = (
    Published("r50_1x_sk0", 23_508_032),
    Published("r50_1x_sk1", 35_215_584),
    Published("r50_2x_sk0", 93_907_072),
    Published("r50_2x_sk1", 140_306_048),
    Published("r50_4x_sk0", 375_378_176),
    Published("r101_1x_sk0", 42_500_160),
    Published("r101_1x_sk1", 64_662_304),
    Published("r101_2x_sk0", 169_771_136),
    Published("r101_2x_sk1", 257_132_224),
    Published("r152_1x_sk0", 58_143_808),
    Published("r152_1x_sk1", 88_940_896),
    Published("r152_2x_sk0", 232_253_568),
    Published("r152_2x_sk1", 353_398_528),
    Published("r152_3x_sk1", 794_704_160),
)
# A directory of a published name, alone or before that of an architecture.
_CATEGORY = re.compile(
    r"(pretrain(?:ed)?|finetuned?_\d+pct|supervised|distill_[^\W_]+)"
    r"(?:_r\d+_\dx_sk[01])?"
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


def load_official(path, *, projection_layer=None, image_size=None):
    """Loads weights that the official SimCLR code wrote, v1 or v2.

    Only the table of the file's variables is read, no function: nothing
    foreign runs. Every variable is used once and every weight is filled, but
    for optimizer slots, counters and the second copy `ema_model/` of
    pretrained TF1 files. Images are float in [0, 1], not normalized, and are
    taken as they are: `encoder` and `classifier` cut nothing off. What crops
    to the centre 7/8 is `SimCLRModel` at rest, and so what `import_official`
    writes.

    Args:
        path: A SavedModel; a TF1 or TF2 checkpoint (`model.ckpt-250228`,
            `ckpt-100`); or the directory of checkpoints, of which the one with
            the highest number is taken.
        projection_layer: Layers of the projection head before the classifier,
            0 for none. The variables do not tell. None: as `saved_model.pb`
            or a `flags.json` beside the file says; or by the published name of
            a directory in the path: 1 for `finetuned_1pct`, `finetuned_10pct`
            and `distill_*`, 0 for others.
        image_size: Height and width of the images, an integer or a pair, of
            which None is any. None: that of the stem, 224 or 32.

    Returns:
        An `Official`. `info` holds `architecture` (`r50_1x_sk0`), `depth`,
        `width_multiplier`, `sk_ratio`, `stem`, `format`, `projection_layers`,
        `classes`, `projection_layer` with its `projection_layer_reason`,
        `category` (a published one that the path names, or None), and the
        numbers of `variables` and of those `ignored`.

    Raises:
        FileNotFoundError: If `path` does not exist.
        ValueError: If it is no checkpoint, is damaged, or holds other than
            the variables of an official network; if nothing says where the
            classifier sits, or what says so disagrees, or it does not fit
            there.

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
    image_size = _checked_size(image_size)
    file = open_file(path)
    expected, info = _match(file)
    info.update(_choose_layer(file, projection_layer, expected, info))
    encoder = ResNet(
        info["depth"],
        width_multiplier=info["width_multiplier"],
        sk_ratio=info["sk_ratio"],
        stem=info["stem"],
        input_shape=(*(image_size or [_SIDES[info["stem"]]] * 2), 3),
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


def _checked_size(image_size):
    """The pair that an `image_size` means, or None."""
    if image_size is None:
        return None
    is_pair = isinstance(image_size, (list, tuple)) and len(image_size) == 2
    sizes = tuple(image_size) if is_pair else (image_size, image_size)
    for size in sizes:
        if size is not None:
            _checks.integer("image_size", size, minimum=1)
    return sizes


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
    for part in reversed(pathlib.Path(path).absolute().parts):
        if match := _CATEGORY.fullmatch(part):
            return match[1], int(bool(_ON_FIRST_LAYER.fullmatch(match[1])))
    return None, 0


def import_official(
    path,
    output_dir,
    *,
    projection_layer=None,
    image_size=None,
    progress=None,
):
    """Turns official weights into a run directory, as if trained here.

    It holds `model.keras` and `summary.json`, for `evaluate`, `finetune`,
    `embed` and `export`; `export/`, as from `export_encoder`; and, if the file
    has a classifier, `classifier/`, as from `train_classifier`, which names
    classes by their number. All of these cut out the centre 7/8 of images
    first, as the official evaluation does, if the encoder takes more than 32
    pixels: what is cropped already should be given to the `Official`.

    Args:
        path: As `load_official`.
        output_dir: Directory to write, new or empty. It is complete or absent.
        projection_layer: As `load_official`.
        image_size: As `load_official`, no side of it None.
        progress: Function that is told how many parts are done, of how many:
            reading, the run, its export, its classifier.

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
    tell = progress or (lambda done, total: None)
    tell(0, _PARTS)
    official = load_official(
        path, projection_layer=projection_layer, image_size=image_size
    )
    tell(1, _PARTS)
    head = ProjectionHead(0, name="projection_head")
    if official.projection_head is not None:
        head = official.projection_head.get_layer("projection_head")
    model = SimCLRModel(official.encoder, head)
    with staging(output_dir) as staged:
        runs.save_model(model, staged)
        summary = {"command": "import-official", **cards.versions()}
        about = {"official": official.info, "weights": weights_digest(model)}
        runs.update_summary(staged, {**summary, **about})
        tell(2, _PARTS)
        export_encoder(model, staged / "export", about=about)
        tell(3, _PARTS)
        if official.classifier is not None:
            network = keras.Sequential(
                [plain_copy(official.classifier), keras.layers.Softmax()],
                name="classifier",
            )
            names = [str(x) for x in range(official.info["classes"])]
            classification.write_classifier(
                model, network, staged / "classifier", names
            )
    tell(_PARTS, _PARTS)
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
    if unsupported := list(_unsupported(file, encoder)):
        raise ValueError(
            "`path` must hold an official network of a kind that is known "
            f"here. Received: path={str(file.path)!r}. Not supported: "
            f"{', '.join(unsupported)}"
        )
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


# Squeeze-and-excitation: the names of its layers. No other convolution that the
# official code makes has a bias.
_SE = re.compile(
    r"(.*/)?_?se_(_?layer|reduce|expand)(_\d+)?/.*|.*conv2d\w*/bias"
)


def _unsupported(file, encoder):
    """Yields what the official code can make and this package cannot."""
    if any(_SE.fullmatch(name) for name in file.shapes):
        yield "squeeze-and-excitation (`se_ratio` above 0)"
    for variable in encoder:
        shape = file.shapes.get(variable.name, variable.shape)
        is_squeeze = variable.layer.endswith("_squeeze_conv")
        if is_squeeze and shape != variable.shape:
            ratio = shape[-1] / shape[-2]
            yield f"`sk_ratio` of about {ratio:.3g}, other than {SK_RATIO}"
            break
    layers = _head_layers(file)
    if layers > _MOST_HEAD_LAYERS:
        yield (
            f"a projection head of {layers} layers, more than "
            f"{_MOST_HEAD_LAYERS}"
        )


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
                name = numbered("base_model", kind, counts[kind], variable)
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


def _head_names(file):
    if file.is_numbered:
        return "head_contrastive/nl_", "batch_normalization"
    return "_projection_head/linear_layers/", "bn_relu/bn"


def _head_layers(file):
    top, _ = _head_names(file)
    numbers = [
        int(name.removeprefix(top).split("/")[0])
        for name in file.shapes
        if name.startswith(top)
    ]
    return max(numbers, default=-1) + 1


def _head_variables(file, features):
    """Yields the `_Variable`s of a head of as many layers as the file has."""
    top, norm = _head_names(file)
    layers = _head_layers(file)
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


def _choose_layer(file, asked, expected, info):
    """The entries of `info` about the classifier's place, and what is known."""
    category, named = named_layer(file.path)
    entries = {
        "category": category,
        "projection_layer": None,
        "projection_layer_reason": "there is no classifier",
    }
    if asked is not None:
        _checks.integer("projection_layer", asked, minimum=0)
    if info["classes"] is None:
        return entries
    (inputs,) = [
        x.shape[0]
        for x in expected
        if x.part == "logits" and x.attribute == "kernel"
    ]
    outputs = _outputs(expected, info)
    fitting = [x for x, units in outputs.items() if units == inputs]
    told = told_layers(file, info["projection_layers"])
    told = {f"{source} says so": layer for source, layer in told.items()}
    if asked is not None:
        told = {"as asked": asked, **told}
    elif not told and category is not None:
        told = {f"the path says {category}": named}
    elif not told and len(fitting) == 1:
        told = {"no other fits": fitting[0]}
    rule = (
        f"`projection_layer` must be one of {fitting or 'none'}, whose outputs "
        f"the classifier takes ({inputs}). "
    )
    layers = f"Layers and their outputs in path={str(file.path)!r}: {outputs}"
    if not told:
        raise ValueError(
            f"{rule}Received: projection_layer=None, and neither the files nor "
            f"the path say which. {layers}. Give `projection_layer`: 1 for "
            "what was fine-tuned on 1 % or 10 % of the labels, or distilled; "
            "else 0"
        )
    received = ", ".join(
        f"projection_layer={layer} ({reason})" for reason, layer in told.items()
    )
    if len(set(told.values())) > 1:
        raise ValueError(
            f"What says where the classifier sits must agree. Received: "
            f"{received}, in path={str(file.path)!r}. Leave out "
            "`projection_layer`, or move away the file that is wrong"
        )
    reason, layer = next(iter(told.items()))
    if layer not in fitting:
        raise ValueError(f"{rule}Received: {received}. {layers}")
    return {
        **entries,
        "projection_layer": layer,
        "projection_layer_reason": reason,
    }


def _outputs(expected, info):
    """Dictionary from projection layers, 0 for none, to their outputs."""
    outputs = {0: _features(info["depth"], info["width_multiplier"])}
    for variable in expected:
        if variable.part == "dense":
            outputs[variable.stage + 1] = variable.shape[1]
    return outputs
