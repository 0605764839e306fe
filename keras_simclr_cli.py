"""Command line of keras_simclr: flag tables, help and dispatch.

It stands beside the package because importing anything inside imports Keras,
and `--help` must not wait for that.
"""

import contextlib
import dataclasses
import difflib
import dis
import importlib.util
import io
import os
import pathlib
import sys
import tempfile
import traceback

from absl import flags

_REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class _Flag:
    """A flag; `library` maps places in the library to other defaults there."""

    kind: str
    default: object
    help: str
    library: dict = dataclasses.field(default_factory=dict)

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


def _recipe_module():
    """The module `recipe`, without the package around it."""
    package = importlib.util.find_spec("keras_simclr")
    (directory,) = package.submodule_search_locations
    spec = importlib.util.spec_from_file_location(
        "keras_simclr_recipe", f"{directory}/recipe.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_fields(kind, *names):
    """Flags for the fields of a class, or for some of them."""
    return {
        field.name: _Flag(
            _KINDS[_RECIPE.flag_type(field)],
            _REQUIRED if field.default is _RECIPE.REQUIRED else field.default,
            field.metadata["help"],
            field.metadata["library"],
        )
        for field in dataclasses.fields(kind)
        if not names or field.name in names
    }


_RECIPE = _recipe_module()
_KINDS = {bool: "boolean", int: "integer", float: "float", str: "string"}

_DATA = _from_fields(_RECIPE.Data)
_RUN_DIR = {
    "run_dir": _Flag("string", _REQUIRED, "Run directory that pretrain wrote."),
}
_OUTPUT_DIR = {
    "output_dir": _Flag(
        "string", _REQUIRED, "Directory to write, new or empty."
    ),
}
_PROJECTION_LAYER = {
    "projection_layer": _Flag(
        "integer",
        0,
        "Layers of the projection head that fine-tuning keeps.",
    ),
}
_SEED = _from_fields(_RECIPE.Recipe, "seed")
_COMMANDS = {
    "demo": (
        "Pretrains on the digits of scikit-learn and shows what it is worth.",
        {
            "output_dir": _Flag(
                "string",
                "runs/demo",
                "Directory to write; an earlier demo in it is replaced.",
            ),
            **_SEED,
        },
    ),
    "scan": (
        "Checks every image of a directory, finds duplicates, and says so.",
        {
            "data": _Flag("string", _REQUIRED, "Directory of images."),
            **_OUTPUT_DIR,
        },
    ),
    "pretrain": (
        "Trains an encoder on unlabelled images and writes a run directory.",
        {
            **_DATA,
            **_OUTPUT_DIR,
            **_from_fields(_RECIPE.Recipe),
            "accept_changed_data": _Flag(
                "boolean",
                False,
                "Goes on with an unfinished run though its images changed.",
            ),
        },
    ),
    "plan": (
        "Measures for a minute or two what this machine can do with images.",
        {
            **_DATA,
            **_from_fields(_RECIPE.Recipe, "epochs", "batch_size"),
            "minutes_per_epoch": _Flag(
                "float",
                30.0,
                "The largest encoder is chosen whose epoch takes no longer.",
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
            "test_data": _Flag(
                "string",
                None,
                "Where these are, if elsewhere: as data. Classes go by name.",
            ),
            "labels": _Flag(
                "list",
                ["1", "5", "10", "50", "1%", "10%", "all"],
                "Labels to learn from: numbers per class, shares, all.",
            ),
            "probes": _Flag(
                "list",
                ["linear", "knn", "finetune"],
                "What learns from them.",
            ),
            "draws": _Flag("integer", 5, "Labelled sets drawn of each number."),
            "encoders": _Flag(
                "list",
                [],
                "Further encoders to compare with: .keras files.",
            ),
            **_PROJECTION_LAYER,
            **_SEED,
        },
    ),
    "finetune": (
        "Trains a classifier on labelled images, and says how good it is.",
        {
            **_RUN_DIR,
            **_DATA,
            **_OUTPUT_DIR,
            **_PROJECTION_LAYER,
            **_SEED,
        },
    ),
    "predict": (
        "Classifies images and writes a table: path, class, probability.",
        {
            "model": _Flag(
                "string", _REQUIRED, "Directory that finetune wrote."
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
                "string", "npz", "Of the table: npz, csv or parquet."
            ),
        },
    ),
    "export": (
        "Writes a run's encoder for use without this package.",
        {
            **_RUN_DIR,
            **_OUTPUT_DIR,
            "formats": _Flag(
                "list",
                ["keras", "saved_model"],
                "Of keras, saved_model, onnx, litert, litert_int8, hub.",
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
            ),
            **_OUTPUT_DIR,
            "projection_layer": _Flag(
                "integer",
                None,
                "Layer of the classifier; by default as the files or the "
                "path's name say.",
            ),
            "image_size": _Flag(
                "integer",
                None,
                "Height and width of the images; by default 224, or 32.",
            ),
        },
    ),
}


def main(argv=None):
    """Runs one command.

    Args:
        argv: Arguments after the program's name, or None for `sys.argv`.

    Returns:
        Exit code: 0, 1 (failed), 2 (wrong usage) or 130 (Ctrl-C).
    """
    output = _Output(sys.stdout)
    with contextlib.redirect_stdout(output):
        code = _main(sys.argv[1:] if argv is None else argv)
        output.flush()
    if output.error is None:
        return code
    with contextlib.suppress(OSError):  # Python tries once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    return _fail(f"not all could be printed: {output.error}", code or 1)


class _Output:
    """A stream for print: its troubles are noted, and the work goes on."""

    def __init__(self, stream):
        self._stream, self.error = stream or io.StringIO(), None

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        self._noting(lambda: self._stream.write(shown))
        return len(text)

    def flush(self):
        self._noting(self._stream.flush)

    def _noting(self, act):
        try:
            act()
        except (OSError, ValueError) as error:  # Of a closed one.
            self.error = self.error or error


def _main(argv):
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
    values = flags.FlagValues()
    define_flags(command, values)
    try:
        positional = values([command, *rest])[1:]
    except flags.Error as error:
        return _fail(f"{command}: {error}", 2)
    if positional:
        return _fail(f"{command}: write --flag=value, not {positional[0]!r}", 2)
    for name in _COMMANDS[command][1]:
        if str(values[name].value).startswith("~"):  # Shells leave --data=~/x.
            path = pathlib.Path(values[name].value)
            values[name].value = str(path.expanduser())
    try:
        return run(command, values) or 0
    except KeyboardInterrupt:
        return _fail(f"{command}: interrupted", 130)
    except Exception as error:
        if _is_refusal(error):
            return _fail(f"{command}: {error}", 1)
        traceback.print_exc()
        return _fail(
            f"{command}: that should not happen. Please report it, with the "
            "lines above",
            1,
        )


def _is_refusal(error):
    """Whether a check raised an error on purpose, or the system did.

    On purpose means by a `raise` of our own; what Python or a library finds
    wrong with our code is a fault, whatever its type.
    """
    if isinstance(error, (OSError, MemoryError, ImportError)):
        return True
    *_, last = _frames(error.__traceback__)
    name = last.tb_frame.f_globals.get("__name__", "")
    code = last.tb_frame.f_code.co_code
    return name.startswith("keras_simclr") and (
        dis.opname[code[last.tb_lasti]] == "RAISE_VARARGS"
    )


def _frames(trace):
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _fail(message, code):
    print(f"keras-simclr: {message}", file=sys.stderr)
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
        if flag.is_required:
            flags.mark_flag_as_required(name, flag_values=values)


def _overview():
    lines = ["usage: keras-simclr COMMAND [--flag=value ...]", ""]
    lines += [f"  {name:17}{text}" for name, (text, _) in _COMMANDS.items()]
    lines += ["", "keras-simclr COMMAND --help lists the flags of a command."]
    return "\n".join(lines)


def _version():
    """The package's, without importing it."""
    import ast

    origin = importlib.util.find_spec("keras_simclr").origin
    lines = pathlib.Path(origin).read_text("utf-8").splitlines()
    (version,) = (x for x in lines if x.startswith("__version__ = "))
    return ast.literal_eval(version.partition(" = ")[2])


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
    if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        _import_quietly()
    return {
        "demo": _demo,
        "scan": _scan,
        "pretrain": _pretrain,
        "plan": _plan,
        "evaluate": _evaluate,
        "finetune": _finetune,
        "predict": _predict,
        "embed": _embed,
        "export": _export,
        "import-official": _import_official,
    }[command](values)


def _import_quietly():
    """Imports TensorFlow without what it says before it can be told not to."""
    with tempfile.TemporaryFile() as said:
        try:
            stderr = os.dup(2)
        except OSError:  # There is none.
            return
        os.dup2(said.fileno(), 2)
        try:
            import keras_simclr  # noqa: F401
        except BaseException:
            said.seek(0)
            os.write(stderr, said.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _demo(values):
    from keras_simclr import demo

    demo.run(values.output_dir, seed=values.seed)


def _scan(values):
    from keras_simclr import _files, _terminal, scanning

    name, progress = "manifest.parquet", _terminal.progress("file")
    with _files.staging(values.output_dir) as staged:
        print(scanning.scan(values.data, staged / name, progress=progress))
    print(f"{pathlib.Path(values.output_dir, name)} describes every file.")


def _fields(kind, values):
    """An object of that class, of the flags that are its fields."""
    names = [x.name for x in dataclasses.fields(kind) if x.name in values]
    return kind(**{name: values[name].value for name in names})


def _data(values):
    from keras_simclr import recipe

    return _fields(recipe.Data, values)


def _pretrain(values):
    from keras_simclr import recipe, runs

    done = runs.carry_out(
        _fields(recipe.Recipe, values),
        _data(values),
        values.output_dir,
        given=[name for name in values if values[name].present],
        accept_changed_data=values.accept_changed_data,
    )
    step = int(done.model.optimizer.iterations.numpy())
    print(f"{values.output_dir} keeps the model after step {step}.")
    if done.epochs < done.recipe.epochs:
        print(
            f"Interrupted after {done.epochs} of {done.recipe.epochs} epochs."
        )
        return 130
    return 0


def _plan(values):
    from keras_simclr import planning, recipe

    result = planning.plan(
        _fields(recipe.Recipe, values),
        _data(values),
        minutes_per_epoch=values.minutes_per_epoch,
    )
    print(result)


def _evaluate(values):
    import keras

    from keras_simclr import _files, _terminal, evaluation, runs, sources

    labels = [int(x) if x.isdigit() else x for x in values.labels]
    model = runs.load_model(values.run_dir)
    runs.read_summary(values.run_dir)  # It can be read, and written later.
    _files.check_can_write(values.run_dir)
    side = max(model.encoder.input_shape[1:3])
    data = _data(values)
    source, train = data.open_in_order(side)
    print(f"To learn from: {data.in_words(source)}.")
    test_data, test = values.test_data or data.data, None
    test_split = (
        values.test_split
        or sources.own_test_split(test_data, data_dir=data.data_dir)
        or ("train" if values.test_data else None)
    )
    if test_split:
        # A manifest is of the files in one place.
        manifest = None if values.test_data else data.manifest
        held_out = dataclasses.replace(
            data, data=test_data, split=test_split, manifest=manifest
        )
        test_source, test = held_out.open_in_order(side)
        print(f"To test on: {held_out.in_words(test_source)}.")
    about = {
        "data": sources.fingerprint(source, data_dir=data.data_dir),
        "split": data.split,
        "test_split": test_split,
        "test_data": values.test_data,
    }
    result = evaluation.evaluate(
        model,
        train,
        test,
        probes=values.probes,
        labels=labels,
        draws=values.draws,
        encoders={
            path: keras.models.load_model(path) for path in values.encoders
        },
        projection_layer=values.projection_layer,
        seed=values.seed,
        report=print,
        progress=_terminal.progress("image"),
    )
    print(result)  # Storing may still fail.
    summary = result.summary
    summary["evaluation"] |= about
    runs.update_summary(values.run_dir, summary)


def _finetune(values):
    from keras_simclr import _files, _terminal, classification, runs

    _files.check_is_free(values.output_dir)
    model = runs.load_model(values.run_dir)
    data = _data(values)
    source, train = data.open_in_order(max(model.encoder.input_shape[1:3]))
    print(f"To learn from: {data.in_words(source)}.")
    classification.train_classifier(
        model,
        train,
        values.output_dir,
        projection_layer=values.projection_layer,
        seed=values.seed,
        report=print,
        progress=_terminal.progress("image"),
    )
    print(f"{values.output_dir} holds classifier.keras and saved_model/.")


def _predict(values):
    from keras_simclr import _files, _terminal, classification

    _files.check_is_free(values.output_dir)
    network = classification.load_classifier(values.model)
    data = _data(values)
    source, images = data.open_in_order(max(network.input_shape[1:3]))
    print(f"Found: {data.in_words(source)}.")
    _write_table(
        values,
        source,
        network,
        "predictions.csv",
        "classified images",
        lambda *path_and_names: classification.write_predictions(
            values.model, images, *path_and_names, _terminal.progress("image")
        ),
    )


def _embed(values):
    from keras_simclr import _files, _terminal, embedding, runs

    _files.check_is_free(values.output_dir)
    model = runs.load_model(values.run_dir)
    data = _data(values)
    source, images = data.open_in_order(max(model.encoder.input_shape[1:3]))
    print(f"Found: {data.in_words(source)}.")
    _write_table(
        values,
        source,
        model,
        f"embeddings.{values.format}",
        "representations",
        lambda *path_and_names: embedding.write_embeddings(
            model, images, *path_and_names, _terminal.progress("image")
        ),
    )


def _write_table(values, source, model, name, what, write):
    """A row for each image; beside it, of what, and the files without one."""
    import csv

    from keras_simclr import _files, cards, copies, runs, sources

    others, is_folder = "skipped.csv", not isinstance(source, str)
    found = sources.fingerprint(source, data_dir=values.data_dir)
    about = {
        "weights": copies.weights_digest(model),
        "data": {**found, "split": values.split},
        **cards.versions(),
    }
    with _files.staging(values.output_dir) as staged:
        count = write(staged / name, source.paths if is_folder else None)
        runs.update_summary(staged, about)
        if is_folder:
            reasons = {**source.left_out, **source.skipped}
            paths = _files.valid_names(reasons)
            rows = zip(paths, reasons.values(), strict=True)
            with (staged / others).open(
                "w", newline="", encoding="utf-8", errors="backslashreplace"
            ) as file:
                csv.writer(file).writerows([("path", "reason"), *rows])
    output_dir = pathlib.Path(values.output_dir)
    print(f"{output_dir / name} holds {count} {what}.")
    if is_folder:
        print(f"{output_dir / others} lists {len(reasons)} other files.")


def _export(values):
    from keras_simclr import _files, export, runs

    export.check_formats(values.formats)
    _files.check_is_free(values.output_dir)
    model = runs.load_model(values.run_dir)
    path = export.export_encoder(
        model,
        values.output_dir,
        formats=values.formats,
        about=runs.about(values.run_dir, model),
        report=print,
    )
    print(f"{path} holds {', '.join(sorted(x.name for x in path.iterdir()))}.")


def _import_official(values):
    from keras_simclr import official

    result = official.import_official(
        values.path,
        values.output_dir,
        projection_layer=values.projection_layer,
        image_size=values.image_size,
    )
    for name, value in result.info.items():
        print(f"{name}: {value}")
    parts = "model.keras and export/"
    if result.classifier is not None:
        parts = "model.keras, export/ and classifier/"
    print(f"{values.output_dir} holds {parts}.")
