"""Command line of keras_simclr: flag tables, parsing, help and dispatch.

It stands beside the package because importing anything inside imports Keras,
and `--help` must not wait for that.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import os
import pathlib
import platform
import re
import sys
import warnings

from absl import flags

_REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class _Flag:
    """A flag; `library` maps places in the library to other defaults there.

    `rule` is the name of a check of `_checks` and its arguments, of the value
    itself or of each in a list; `place` the same of `_files`, of what is there;
    `instead_of` names a required flag whose place it takes.
    """

    kind: str
    default: object
    help: str
    rule: tuple | None = None
    place: tuple | None = None
    library: dict = dataclasses.field(default_factory=dict)
    instead_of: str | None = None

    @property
    def is_required(self):
        return self.default is _REQUIRED

    @property
    def note(self):
        """What stands behind the help: the defaults, or that it is needed."""
        if self.is_required:
            return " (required)"
        if self.default in (None, []):
            return ""
        is_list = isinstance(self.default, list)
        text = ",".join(self.default) if is_list else self.default
        others = [f"; of {x} itself {y}" for x, y in self.library.items()]
        return f" (default {text}{''.join(others)})"


def _module(name):
    """A module of the package, without the package around it."""
    if f"keras_simclr.{name}" in sys.modules:
        return sys.modules[f"keras_simclr.{name}"]
    package = importlib.util.find_spec("keras_simclr")
    (directory,) = package.submodule_search_locations
    spec = importlib.util.spec_from_file_location(
        f"keras_simclr_{name}", f"{directory}/{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_fields(kind, *names):
    """Flags for the fields of a class, or for some of them."""
    return {
        field.name: _Flag(
            _KINDS[_FLAG_TEXTS.flag_type(field)],
            _REQUIRED if field.default is _RECIPE.REQUIRED else field.default,
            **field.metadata,
        )
        for field in dataclasses.fields(kind)
        if not names or field.name in names
    }


def _written_by(command, name):
    """What there must be at a path: a directory with that file."""
    rule = f"a directory with {name}, written by `{command}`"
    return ("check_exists", {"rule": rule, "holds": name})


_RECIPE, _terminal = _module("recipe"), _module("_terminal")
_FLAG_TEXTS = _module("flag_texts")
_KINDS = {bool: "boolean", int: "integer", float: "float", str: "string"}
_COUNT = ("integer", {"minimum": 1})
_TWO = ("integer", {"minimum": 2})
_PLACE = ("integer", {"minimum": 0})
_PROBES = ("linear", "knn", "finetune")
_FORMATS = ("keras", "saved_model", "onnx", "litert", "litert_int8", "hub")

# What an unfinished run has, first of all; the run module knows the rest.
_UNFINISHED = ("check_output", {"unless": ("flags.txt", "staged-flags.txt")})

_DATA = _from_fields(_RECIPE.Data)
_RUN_DIR = {
    "run_dir": _Flag(
        "string",
        _REQUIRED,
        "Run directory that pretrain wrote.",
        place=_written_by("pretrain", "model.keras"),
    ),
}
_OUTPUT_DIR = {
    "output_dir": _Flag(
        "string",
        _REQUIRED,
        "Directory to write, new or empty.",
        place=("check_output", {}),
    ),
}
_PROJECTION_LAYER = {
    "projection_layer": _Flag(
        "integer",
        0,
        "Layers of the projection head that fine-tuning keeps.",
        _PLACE,
    ),
}
_TEST_DATA = {
    "test_data": _Flag(
        "string",
        None,
        "Where these are, if elsewhere: as data. Classes go by name.",
        place=("check_data", {}),
    ),
}
_CHANGED_DATA = {
    "accept_changed_data": _Flag(
        "boolean",
        False,
        "Goes on with an unfinished run though its images changed.",
    ),
}
_KEEPING = {
    "save_minutes": _Flag(
        "float",
        15.0,
        "Minutes from one checkpoint to the next, also within an epoch.",
        ("positive_number", {}),
    ),
    "keep": _Flag("integer", 2, "Latest checkpoints that stay.", _COUNT),
    "keep_every": _Flag(
        "integer",
        None,
        "Checkpoints after every so many epochs stay, too.",
        _COUNT,
    ),
}
_OUTPUT_RUN = {
    "output_dir": _Flag(
        "string",
        _REQUIRED,
        "Directory to write: new, empty, or with an unfinished run.",
        place=_UNFINISHED,
    ),
}
_OF_BOTH = [
    field.name
    for field in dataclasses.fields(_RECIPE.Recipe)
    if field.name not in _RECIPE.OF_CONTRAST
]
_SEED = _from_fields(_RECIPE.Recipe, "seed")
_ENCODER = {
    "encoder": _Flag(
        "string",
        None,
        "Instead of run_dir: a .keras file, keras_applications:NAME, "
        "keras_hub:PRESET.",
        place=("check_network", {}),
        instead_of="run_dir",
    ),
}
# By default those of the run.
_OWN_DATA = {
    **_DATA,
    "data": dataclasses.replace(
        _DATA["data"],
        default=None,
        help=_DATA["data"].help + " By default what the run was trained on.",
    ),
}
_COMMANDS = {
    "demo": (
        "Pretrains on the digits of scikit-learn and shows what it is worth.",
        {
            "output_dir": _Flag(
                "string",
                "runs/demo",
                "Directory to write; an earlier demo in it is replaced.",
                place=_UNFINISHED,
            ),
            **_SEED,
        },
    ),
    "scan": (
        "Checks every image of a directory, finds duplicates, and says so.",
        {**_from_fields(_RECIPE.Data, "data", "kind"), **_OUTPUT_DIR},
    ),
    "pretrain": (
        "Trains an encoder on unlabelled images and writes a run directory.",
        {
            **_DATA,
            **_OUTPUT_RUN,
            **_from_fields(_RECIPE.Recipe),
            **_KEEPING,
            **_CHANGED_DATA,
            "more_epochs": _Flag(
                "integer",
                None,
                "Goes on with a finished run, for so many epochs.",
                _COUNT,
            ),
            "report": _Flag(
                "boolean",
                False,
                "Writes a page of what was learnt, in the end: report/ in it.",
            ),
            "doctor": _Flag(
                "boolean", True, "Says in words what is wrong with a training."
            ),
            "tensorboard": _Flag(
                "boolean",
                False,
                "Writes TensorBoard's files into OUTPUT_DIR/tensorboard.",
            ),
        },
    ),
    "plan": (
        "Measures this machine for a minute or two, and plans a training.",
        {
            **_DATA,
            **_from_fields(_RECIPE.Recipe, "batch_size"),
            "hours": _Flag(
                "float",
                0.5,
                "To train for. Encoder, size of views and epochs follow.",
                ("positive_number", {}),
            ),
            **_SEED,
        },
    ),
    "evaluate": (
        "Shows what a run's encoder is worth, beside pixels and no training.",
        {
            **_RUN_DIR,
            **_DATA,
            "test_split": _Flag(
                "string",
                None,
                "Images to test on; by default TFDS's test, or random fifths.",
            ),
            **_TEST_DATA,
            "labels": _Flag(
                "list",
                ["1", "10", "1%", "all"],
                "Labels to learn from: numbers per class, shares, all.",
                (
                    "matching",
                    {
                        "pattern": "0*[1-9][0-9]*|0*[1-9][0-9]?%|all",
                        "rule": "positive integers (per class), shares such as "
                        "1% and all",
                    },
                ),
            ),
            "probes": _Flag(
                "list",
                ["linear", "knn"],
                f"What learns from them, of {', '.join(_PROBES)}.",
                ("choice", {"choices": _PROBES}),
            ),
            "draws": _Flag("integer", 5, "Labelled sets, 2 or more.", _TWO),
            "thorough": _Flag(
                "boolean", False, "More labels, finetune too: it takes hours."
            ),
            "encoders": _Flag(
                "list",
                [],
                "What to compare with: .keras files, runs, keras_applications:"
                "NAME, keras_hub:PRESET; classifiers that finetune or distill "
                "wrote; tables of vectors, .parquet or .npz.",
                place=("check_network", {"or_table": True}),
            ),
            **_PROJECTION_LAYER,
            **_SEED,
        },
    ),
    "finetune": (
        "Trains a classifier on labelled images, and says how good it is.",
        {
            **_RUN_DIR,
            **_ENCODER,
            **_DATA,
            **_OUTPUT_DIR,
            **_PROJECTION_LAYER,
            **_SEED,
        },
    ),
    "distill": (
        "Has a classifier or an encoder teach a smaller one, without labels.",
        {
            "teacher": _Flag(
                "string",
                _REQUIRED,
                "A directory that finetune wrote: its classes are taught, "
                "without changes of colour. Or an encoder, as in start_from.",
                place=("check_network", {}),
            ),
            **_DATA,
            **_OUTPUT_RUN,
            **_from_fields(_RECIPE.Recipe, *_OF_BOTH),
            "temperature": _Flag(
                "float",
                None,
                "Of what is compared; by default 1, of a student of a "
                "classifier's own shape 0.1, of encoders 0.07 and 0.2.",
                ("positive_number", {}),
            ),
            "labelled": _Flag(
                "string",
                None,
                "Images whose true classes are learnt, too: as data. They "
                "should be in it.",
                place=("check_data", {}),
            ),
            "label_weight": _Flag(
                "float",
                0.1,
                "Part of the loss that true classes are; the rest is the "
                "teacher's.",
                ("probability", {}),
            ),
            "test_split": _Flag(
                "string",
                None,
                "Labelled images to test teacher and student on.",
            ),
            **_TEST_DATA,
            **_KEEPING,
            **_CHANGED_DATA,
        },
    ),
    "predict": (
        "Classifies images and writes a table: path, class, probability.",
        {
            "model": _Flag(
                "string",
                _REQUIRED,
                "Directory that finetune wrote.",
                place=_written_by("finetune", "class_names.json"),
            ),
            **_DATA,
            **_OUTPUT_DIR,
        },
    ),
    "embed": (
        "Writes the representations of images as a table.",
        {
            **_RUN_DIR,
            **_DATA,
            **_OUTPUT_DIR,
            "format": _Flag(
                "string",
                "npz",
                "Of the table: npz, csv or parquet.",
                ("choice", {"choices": ("npz", "csv", "parquet")}),
            ),
        },
    ),
    "report": (
        "Writes a page that shows what an encoder has learnt, and tables.",
        {
            **_RUN_DIR,
            **_ENCODER,
            **_OWN_DATA,
            "labelled": _Flag(
                "string",
                None,
                "Where labelled images are, if elsewhere: as data.",
                place=("check_data", {}),
            ),
            **_OUTPUT_DIR,
            **_SEED,
        },
    ),
    "search": (
        "Finds the images that are most like one.",
        {
            **_RUN_DIR,
            **_OWN_DATA,
            "query": _Flag(
                "string",
                _REQUIRED,
                "Image file to find the like of.",
                place=(
                    "check_exists",
                    {"rule": "an image file", "is_directory": False},
                ),
            ),
            "count": _Flag("integer", 20, "How many to find, at most.", _COUNT),
        },
    ),
    "export": (
        "Writes an encoder, or a classifier, for use without this package.",
        {
            **_RUN_DIR,
            "model": _Flag(
                "string",
                None,
                "Instead of run_dir: a classifier's directory, as finetune "
                "writes it.",
                place=_written_by("finetune", "class_names.json"),
                instead_of="run_dir",
            ),
            **_OUTPUT_DIR,
            "formats": _Flag(
                "list",
                ["keras", "saved_model"],
                f"Of {', '.join(_FORMATS)}.",
                ("choice", {"choices": _FORMATS}),
            ),
        },
    ),
    "replay": (
        "Makes a step that failed again, and says what is not finite.",
        {
            **_RUN_DIR,
            "batch": _Flag(
                "string",
                _REQUIRED,
                "What the run kept of that step: nan-step-N.npz in it.",
                place=(
                    "check_exists",
                    {"rule": "an existing file", "is_directory": False},
                ),
            ),
        },
    ),
    "import-official": (
        "Makes a run of weights that the official SimCLR code wrote.",
        {
            "path": _Flag(
                "string",
                _REQUIRED,
                "SavedModel, TF1 or TF2 checkpoint, or its directory.",
                place=("check_checkpoint", {}),
            ),
            **_OUTPUT_DIR,
            "projection_layer": _Flag(
                "integer",
                None,
                "Layer of the classifier; by default as the files or the "
                "path's name say.",
                _PLACE,
            ),
            "image_size": _Flag(
                "integer",
                None,
                "Height and width of the images; by default 224, or 32.",
                _COUNT,
            ),
        },
    ),
}
for _, _table in _COMMANDS.values():
    _table["quiet"] = _Flag(
        "boolean", False, "Says nothing on the way, only the result."
    )


def main(argv=None):
    """Runs one command.

    Args:
        argv: Arguments after the program's name, or None for `sys.argv`.

    Returns:
        Exit code: 0, 1 (failed), 2 (wrong usage), 130 (Ctrl-C) or, ended by
        another signal, 128 and its number.
    """
    output = _terminal.Output(sys.stdout)
    argv = sys.argv[1:] if argv is None else list(argv)
    with contextlib.redirect_stdout(output), _terminal.interruptible() as came:
        try:
            code = _main(argv, came)
        except BaseException as error:
            # What is interrupted may fail in another way: imports do.
            if not came and not isinstance(error, KeyboardInterrupt):
                raise
            code = _fail(": ".join([*argv[:1], "interrupted"]), 130)
    if code and came:
        code = 128 + came[0]
    output.flush()
    if output.error is None:
        return code
    with contextlib.suppress(OSError):  # Python tries once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    return _fail(f"not all could be printed: {output.error}", code or 1)


def _main(argv, came):
    if not argv or argv in (["--help"], ["-h"], ["help"]):
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"keras-simclr {_version()}")
        return 0
    if argv[0] in ("--help", "-h", "help"):
        argv = [*argv[1:], "--help"]
    command, *rest = argv
    if command not in _COMMANDS:
        near = difflib.get_close_matches(command, _COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return _fail(f"unknown command {command!r}.{hint}\n{_overview()}", 2)
    if {"--help", "-h"} & set(rest):
        print(_command_help(command))
        return 0
    try:
        values = _parsed(command, rest)
    except (flags.Error, ValueError) as error:
        return _fail(f"{command}: {error}", 2)
    try:
        return run(command, values) or 0
    except Exception as error:
        if came:
            raise
        if _terminal.is_refusal(error):
            return _fail(f"{command}: {error}", 1)
        about = f"keras-simclr {_version()}, Python {platform.python_version()}"
        place = _terminal.report_fault(error, about, *argv, "")
        return _fail(
            f"{command}: that should not happen. Please report it, with "
            f"{place}",
            1,
        )


def _parsed(command, arguments):
    """Parsed flags; raises if a value is wrong in itself."""
    values = flags.FlagValues()
    define_flags(command, values)
    try:
        positional = values([command, *arguments])[1:]
    except UnicodeDecodeError as error:
        raise ValueError(f"`flagfile` must be a text file: {error}") from None
    if positional:
        raise ValueError(f"write --flag=value, not {positional[0]!r}")
    checks, files = _module("_checks"), _module("_files")
    table = _COMMANDS[command][1]
    given = [name for name in table if values[name].present]
    replaced = {table[name].instead_of: name for name in given}
    for name, flag in table.items():
        if not values[name].present:
            if flag.is_required and name not in replaced:
                raise ValueError(f"--{name} must be given. {flag.help}")
            continue
        if name in replaced:
            raise ValueError(f"give --{name} or --{replaced[name]}, not both")
        items = _items(values[name])
        if flag.kind == "string":
            values[name].value = files.at_home(name, values[name].value)
        elif flag.kind == "list":
            values[name].value = [files.at_home(name, x) for x in items]
        if not items or "" in items:
            raise ValueError(f"`{name}` must not be empty")
        twice = {str(x) for x in items if items.count(x) > 1}
        if twice:
            raise ValueError(
                f"`{name}` must name nothing twice. Received: {min(twice)!r}"
            )
        if flag.rule:
            check, limits = flag.rule
            for item in items:
                getattr(checks, check)(name, item, **limits)
    return values


def _items(flag):
    """What a flag holds, as a list: of one thing, or what it lists."""
    return flag.value if isinstance(flag.value, list) else [flag.value]


def _check_places(command, values):
    """Refuses what flags name if it is not there, or in the way."""
    files, table = _module("_files"), _COMMANDS[command][1]
    for name, flag in table.items():
        if name == "start_from":
            # What a run began with it keeps: that may be gone elsewhere.
            if pathlib.Path(values.output_dir, "start.keras").exists():
                continue
        for item in _items(values[name]):
            if flag.place and item is not None:
                check, rules = flag.place
                with files.naming(name):
                    getattr(files, check)(name, item, **rules)


def _fail(message, code):
    print(f"keras-simclr: {message}", file=_terminal.Output(sys.stderr))
    return code


def define_flags(command, values):
    """Defines a command's flags.

    Args:
        command: Name of the command.
        values: `absl.flags.FlagValues` to define them in.
    """
    for name, flag in _COMMANDS[command][1].items():
        define = getattr(flags, f"DEFINE_{flag.kind}")
        default = None if flag.is_required else flag.default
        define(name, default, flag.help, flag_values=values)


def _overview():
    lines = ["usage: keras-simclr COMMAND [--flag=value ...]", ""]
    lines += [f"  {name:17}{text}" for name, (text, _) in _COMMANDS.items()]
    lines += ["", "keras-simclr COMMAND --help lists the flags of a command."]
    return "\n".join(lines)


def _version():
    """The package's, without importing it."""
    origin = importlib.util.find_spec("keras_simclr").origin
    text = pathlib.Path(origin).read_text("utf-8")
    return re.search('(?m)^__version__ = "(.*)"$', text)[1]


def _command_help(command):
    text, table = _COMMANDS[command]
    lines = [f"usage: keras-simclr {command} [--flag=value ...]", "", text, ""]
    for name, flag in table.items():
        lines.append(f"  --{name}: {flag.help}{flag.note}")
    lines.append("  --flagfile: File of flags, such as a run's flags.txt.")
    return "\n".join(lines)


def run(command, values):
    """Runs a command with parsed flags.

    Args:
        command: Name of the command.
        values: Parsed `absl.flags.FlagValues`.

    Returns:
        Exit code, or None for 0.
    """
    _check_places(command, values)
    if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        _terminal.import_quietly()
    # Pillow's: an image that is too large is skipped, and named.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    from keras_simclr import commands

    return commands.perform(command, values)
