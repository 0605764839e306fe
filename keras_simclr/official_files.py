"""Files that the official SimCLR code wrote: what is in them, and where."""

import dataclasses
import json
import pathlib
import re

import tensorflow as tf

# The schemas of the files, generated from their public .proto: there is no
# other way to names, or to functions without running them.
from tensorflow.core.protobuf import (
    saved_model_pb2,
    trackable_object_graph_pb2,
)


@dataclasses.dataclass(frozen=True)
class OfficialFile:
    """An open checkpoint of the official code.

    Attributes:
        path: `pathlib.Path`, as it was given.
        format: Its kind, in words.
        reader: `tf.train.CheckpointReader`.
        keys: Dictionary from our name of each variable to the file's.
        shapes: Dictionary from our name to the shape.
        is_numbered: Whether our names are those of TF1, which count layers.
        ignored: Number of variables left out by rule.
    """

    path: pathlib.Path
    format: str
    reader: object
    keys: dict
    shapes: dict
    is_numbered: bool
    ignored: int

    def read(self, name):
        """The value of a variable of ours, as an array."""
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


def open_file(path):
    """Opens a SavedModel or a checkpoint; no function of it is run.

    Args:
        path: `pathlib.Path`, as `load_official` takes it.

    Returns:
        `OfficialFile`.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is no checkpoint, or damaged.

    Example:

    ```python
    file = open_file(pathlib.Path("pretrained/r50_1x_sk0/saved_model"))
    print(file.shapes)
    ```
    """
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
    return OfficialFile(
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
        return numbered("base_model", kind, number, match["variable"])
    if match := _IN_HEAD.fullmatch(name):
        return "/".join(("head_contrastive", *match.groups()))
    if match := _IN_CLASSIFIER.fullmatch(name):
        return f"head_supervised/linear_layer/dense/{match['variable']}"
    return None


def numbered(scope, kind, number, variable):
    """A name as TF1 makes it of the number of a layer."""
    suffix = f"_{number}" if number else ""
    return f"{scope}/{kind}{suffix}/{variable}"


_CLASSIFIER = re.compile(r"(?:.*/)?head_supervised/.*MatMul")
_FLAGS = "flags.json"


def told_layers(file, layers):
    """What the files say about the layer that the classifier sits on.

    Args:
        file: `OfficialFile`.
        layers: Layers of its projection head.

    Returns:
        Dictionary from what says so, in words, to the number of layers of the
        projection head before the classifier: of `saved_model.pb`, the
        products on the way to the classifier's, and of the official code's
        `flags.json`, in the file's directory or one of the two above it,
        `ft_proj_selector`. Empty if they say nothing.

    Example:

    ```python
    file = open_file(pathlib.Path("finetuned_10pct/r50_1x_sk0/saved_model"))
    told_layers(file, 3)  # {"saved_model.pb": 1}
    ```
    """
    told = {}
    graph = file.path / "saved_model.pb"
    if graph.is_file():
        found = {
            layer
            for function in _functions(graph)
            for layer in _layers_before(function.node_def)
        }
        if len(found) == 1:
            told["saved_model.pb"] = found.pop()
    place = file.path.absolute()
    place = place if place.is_dir() else place.parent
    for directory in (place, *place.parents[:2]):
        selector = _selector(directory / _FLAGS)
        if selector is not None:
            # As in a list of the representation and all layers' outputs.
            selector += (layers + 1) * (selector < 0)
            told[f"ft_proj_selector in {directory.name}/{_FLAGS}"] = selector
            break
    return told


def _functions(path):
    try:
        model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except Exception as error:  # Of the package that reads the format.
        raise ValueError(
            "`path` must hold a whole SavedModel: saved_model.pb is damaged. "
            f"Received: path={str(path.parent)!r} ({error}). Copy it again"
        ) from None
    return [x for y in model.meta_graphs for x in y.graph_def.library.function]


def _layers_before(nodes):
    """Yields how many products lie between the network and a classifier."""
    nodes = {node.name: node for node in nodes}
    for node in nodes.values():
        if node.op == "MatMul" and _CLASSIFIER.fullmatch(node.name):
            seen, rest = set(), list(node.input)
            while rest:
                name = rest.pop().lstrip("^").split(":")[0]
                if name in nodes and name not in seen:
                    seen.add(name)
                    rest += nodes[name].input
            # Of what lies outside of this function, nothing is known.
            if any(nodes[name].op == "Conv2D" for name in seen):
                yield sum(nodes[name].op == "MatMul" for name in seen)


def _selector(path):
    try:
        selector = json.loads(path.read_text("utf-8"))["ft_proj_selector"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return selector if type(selector) is int else None
