"""Command line of keras_simclr: flag tables, help and dispatch.

It stands beside the package because importing anything inside imports Keras,
and `--help` must not wait for that.
"""

import difflib
import os
import sys

from absl import flags

# Flag: (kind, default, help). Flags without a default are required.
_REQUIRED = object()

_IN_ORDER = {"shuffle": False, "drop_remainder": False}
_IMAGE_SIZE = 64  # Of views of images that have no one size.

_DATA = {
    "data": (
        "string",
        _REQUIRED,
        "A folder, PATH.npz (images, perhaps labels) or tfds:NAME[/CONFIG].",
    ),
    "data_dir": (
        "string",
        None,
        "Directory of prepared TFDS datasets; by default TFDS's own.",
    ),
    "split": (
        "string",
        "train",
        "Images to use, as TFDS writes it: train[:90%]. Files have only train.",
    ),
    "manifest": (
        "string",
        None,
        "What `scan` found in the folder: problem files are left out.",
    ),
    "unreadable_limit": (
        "float",
        0.01,
        "Share of a folder's files that may be unreadable.",
    ),
}
_RUN_DIR = {
    "run_dir": ("string", _REQUIRED, "Run directory that pretrain wrote."),
}
_OUTPUT_DIR = {
    "output_dir": ("string", _REQUIRED, "Directory to write, new or empty."),
}
_PROJECTION_LAYER = {
    "projection_layer": (
        "integer",
        0,
        "Layers of the projection head that fine-tuning keeps.",
    ),
}
_SEED = {
    "seed": ("integer", 0, "All randomness is a function of it."),
}
_COMMANDS = {
    "demo": (
        "Pretrains on the digits of scikit-learn and shows what it is worth.",
        {
            "output_dir": (
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
            "data": ("string", _REQUIRED, "Directory of images."),
            **_OUTPUT_DIR,
        },
    ),
    "pretrain": (
        "Trains an encoder on unlabelled images and writes a run directory.",
        {
            **_DATA,
            **_OUTPUT_DIR,
            "depth": (
                "integer",
                10,
                "Depth of the ResNet: 10, 18, 34, 50, 101, 152 or 200.",
            ),
            "width_multiplier": (
                "float",
                0.5,
                "Every layer has this many times the usual channels.",
            ),
            "image_size": (
                "integer",
                None,
                "Side of the views, pixels; by default the images', or 64.",
            ),
            "stem": (
                "string",
                "auto",
                "Stem: imagenet, cifar, or auto: cifar up to 32 pixels.",
            ),
            "projection_layers": (
                "integer",
                2,
                "Layers of the projection head, 0 to 3.",
            ),
            "epochs": ("integer", 8, "Passes over the images."),
            "batch_size": ("integer", 256, "Images in a batch (not views)."),
            "micro_batch_size": (
                "string",
                None,
                "Images in memory at a time; auto: as many as fit.",
            ),
            "learning_rate": (
                "float",
                1.0,
                "Learning rate of LARS at batch 256; scaled linearly.",
            ),
            "warmup_epochs": (
                "float",
                None,
                "Epochs of rising rate; by default a tenth, at most 10.",
            ),
            "weight_decay": ("float", 1e-6, "Weight decay of LARS."),
            "trust_coefficient": (
                "float",
                0.02,
                "Length of a step of LARS relative to the weights.",
            ),
            "temperature": ("float", 0.2, "Temperature of NT-Xent."),
            "smallest_crop": (
                "float",
                0.2,
                "Smallest share of an image's area that a view shows.",
            ),
            "flip_rate": ("float", 0.5, "Probability of a horizontal flip."),
            "strength": ("float", 1.0, "Strength of the colour distortion."),
            "color_rate": ("float", 0.8, "Probability of the colour jitter."),
            "grayscale_rate": (
                "float",
                0.2,
                "Probability of dropping the colours.",
            ),
            "blur_rate": ("float", 0.5, "Probability of the blur."),
            "strategy": (
                "string",
                "auto",
                "one, mirrored, multi_worker, tpu, or auto: what there is.",
            ),
            "precision": (
                "string",
                "auto",
                "Keras dtype policy, or auto: the fastest on this machine.",
            ),
            **_SEED,
        },
    ),
    "plan": (
        "Measures for a minute or two what this machine can do with images.",
        {
            **_DATA,
            "epochs": ("integer", 8, "Passes over the images."),
            "batch_size": ("integer", 256, "Images in a batch (not views)."),
            "minutes_per_epoch": (
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
            "test_split": (
                "string",
                None,
                "Images to test on; by default TFDS's test, or random fifths.",
            ),
            "labels": (
                "list",
                ["1", "5", "10", "50", "1%", "10%", "all"],
                "Labels to learn from: numbers per class, shares, all.",
            ),
            "probes": (
                "list",
                ["linear", "knn", "finetune"],
                "What learns from them.",
            ),
            "draws": ("integer", 5, "Labelled sets drawn of each number."),
            "encoders": (
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
            "model": ("string", _REQUIRED, "Directory that finetune wrote."),
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
            "format": ("string", "npz", "Of the table: npz, csv or parquet."),
        },
    ),
    "export": (
        "Writes a run's encoder for use without this package.",
        {
            **_RUN_DIR,
            **_OUTPUT_DIR,
            "formats": (
                "list",
                ["keras", "saved_model"],
                "Of keras, saved_model, onnx, litert, litert_int8, hub.",
            ),
        },
    ),
    "import-official": (
        "Makes a run of weights that the official SimCLR code wrote.",
        {
            "path": (
                "string",
                _REQUIRED,
                "SavedModel, TF1 or TF2 checkpoint, or its directory.",
            ),
            **_OUTPUT_DIR,
            "projection_layer": (
                "integer",
                None,
                "Layer of the classifier; by default as the path's name says.",
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
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(_overview())
        return 0 if argv else 2
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
    try:
        return run(command, values) or 0
    except KeyboardInterrupt:
        return _fail(f"{command}: interrupted", 130)
    except (
        ValueError,
        TypeError,
        OSError,
        MemoryError,
        ImportError,
    ) as error:
        return _fail(f"{command}: {error}", 1)


def _fail(message, code):
    print(f"keras-simclr: {message}", file=sys.stderr)
    return code


def define_flags(command, values):
    """Defines a command's flags.

    Args:
        command: Name of the command.
        values: `absl.flags.FlagValues` to define them in.
    """
    for name, (kind, default, text) in _COMMANDS[command][1].items():
        define = getattr(flags, f"DEFINE_{kind}")
        is_required = default is _REQUIRED
        default = None if is_required else default
        define(name, default, text, flag_values=values)
        if is_required:
            flags.mark_flag_as_required(name, flag_values=values)


def _overview():
    lines = ["usage: keras-simclr COMMAND [--flag=value ...]", ""]
    lines += [f"  {name:17}{text}" for name, (text, _) in _COMMANDS.items()]
    lines += ["", "keras-simclr COMMAND --help lists the flags of a command."]
    return "\n".join(lines)


def _command_help(command):
    text, table = _COMMANDS[command]
    lines = [f"usage: keras-simclr {command} [--flag=value ...]", "", text, ""]
    for name, (_, default, explanation) in table.items():
        if isinstance(default, list):
            default = ",".join(default)
        note = "required" if default is _REQUIRED else f"default {default}"
        note = "" if default is None else f" ({note})"
        lines.append(f"  --{name}: {explanation}{note}")
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
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
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


def _demo(values):
    from keras_simclr import demo

    demo.run(values.output_dir, seed=values.seed)


def _scan(values):
    import pathlib

    import keras

    from keras_simclr import export, folders

    export.check_is_free(values.output_dir)
    path = pathlib.Path(values.output_dir) / "manifest.parquet"
    bar = keras.utils.Progbar(None, unit_name="file")

    def progress(done, total):
        bar.target = total
        bar.update(done)

    print(folders.scan(values.data, path, progress=progress))
    print(f"{path} describes every file.")


def _pretrain(values):
    import keras

    from keras_simclr import cards, data, runs

    size = values.micro_batch_size
    if size not in (None, "auto") and not size.isdigit():
        raise ValueError(
            "`micro_batch_size` must be a positive integer or auto. Received: "
            f"micro_batch_size={size!r}"
        )
    strategy = runs.make_strategy(values.strategy)
    print(f"Devices: {runs.describe_devices(strategy)}.")
    runs.check_can_run(values.output_dir)
    _choose(values, "precision", strategy, runs.fastest_precision)
    keras.config.set_dtype_policy(values.precision)
    keras.utils.set_random_seed(values.seed)
    source, dataset = _open_to_train(values)
    _choose(
        values,
        "micro_batch_size",
        strategy,
        lambda: _largest_micro_batch(values, dataset, strategy),
    )
    with strategy.scope():
        model = _build_model(values, dataset, values.micro_batch_size)
    found = {
        **data.fingerprint(source, data_dir=values.data_dir),
        "split": values.split,
        "images_per_epoch": int(dataset.cardinality()) * values.batch_size,
    }
    epochs = runs.pretrain(
        model,
        dataset,
        values.output_dir,
        epochs=values.epochs,
        flags=values.flags_into_string(),
        summary={"command": "pretrain", "data": found, **cards.versions()},
    )
    step = int(model.optimizer.iterations.numpy())
    print(f"{values.output_dir} keeps the model after step {step}.")
    if epochs < values.epochs:
        print(f"Interrupted after {epochs} of {values.epochs} epochs.")
        return 130
    return 0


def _plan(values):
    import keras

    from keras_simclr import large_batch, planning, runs

    strategy = runs.make_strategy("auto")
    if large_batch.has_workers(strategy):
        raise ValueError("A plan is for one machine. Unset TF_CONFIG.")
    print(f"Devices: {runs.describe_devices(strategy)}.")

    def parsed(chosen):
        pretrain = flags.FlagValues()
        define_flags("pretrain", pretrain)
        arguments = planning.as_arguments({**chosen, "output_dir": "unused"})
        pretrain(["pretrain", *arguments])
        return pretrain

    def build_model(chosen, dataset):
        keras.utils.set_random_seed(values.seed)
        chosen = parsed(chosen)
        return _build_model(chosen, dataset, chosen.micro_batch_size)

    given = {
        name: values[name].value
        for name in (*_DATA, *_SEED)
        if values[name].value != values[name].default
    }
    given["epochs"] = values.epochs
    given["batch_size"] = values.batch_size
    given["learning_rate"] = parsed(given).learning_rate
    given["precision"] = runs.fastest_precision()
    keras.config.set_dtype_policy(given["precision"])
    with strategy.scope():
        result = planning.plan(
            lambda chosen: _open_to_train(parsed(chosen))[1],
            build_model,
            given,
            minutes_per_epoch=values.minutes_per_epoch,
            largest_micro_batch=lambda chosen, dataset: _largest_micro_batch(
                parsed(chosen), dataset, strategy
            ),
        )
    print(result)


def _choose(values, name, strategy, choose):
    """Replaces `auto` by what the unfinished run has, or by a choice."""
    from keras_simclr import large_batch, runs

    if values[name].value != "auto":
        return
    recorded = runs.recorded_flags(values.output_dir)
    if recorded:
        choice = recorded.get(name)
    elif large_batch.has_workers(strategy):
        raise ValueError(
            f"`{name}` must be the same for all workers. Received: "
            f"{name}='auto'. Run one worker alone to see what it chooses"
        )
    else:
        choice = choose()
        flag = f"--{name}={choice}" if choice else f"no --{name}"
        print(f"Chosen for this machine: {flag}.")
    setattr(values, name, choice)


def _largest_micro_batch(values, dataset, strategy):
    """The largest micro-batch that fits, as text; or None for the batch."""
    import keras
    import tensorflow as tf

    from keras_simclr import data, large_batch, runs

    model = _build_model(values, dataset, None)
    model.build_optimizer()  # Its slots take memory, too.
    spec = data.unpack(dataset.element_spec)["images"]

    @tf.function
    def step(images):
        return model.replica_gradients({"images": images})[0]

    size = large_batch.largest_micro_batch(
        lambda size: step(tf.zeros((size, *spec.shape[1:]), spec.dtype)),
        values.batch_size // strategy.num_replicas_in_sync,
    )
    runs.forget_models()
    keras.utils.set_random_seed(values.seed)  # As if nothing had been tried.
    return size and str(size)


def _build_model(values, dataset, micro_batch_size):
    """The compiled model that the flags of `pretrain` describe."""
    import keras

    import keras_simclr as simclr
    from keras_simclr import data, networks

    element = data.unpack(dataset.element_spec)
    *sides, channels = element["images"].shape[1:]
    if values.image_size or "sizes" in element:
        sides = [values.image_size or _IMAGE_SIZE] * 2
    shape = (*sides, channels)
    stem = values.stem
    if stem == "auto":
        stem = networks.stem_for(max(sides))
    model = simclr.SimCLRModel(
        simclr.ResNet(
            values.depth,
            width_multiplier=values.width_multiplier,
            stem=stem,
            input_shape=shape,
        ),
        simclr.ProjectionHead(values.projection_layers),
        augmentation=simclr.SimCLRAugmentation(
            tuple(sides),
            strength=values.strength,
            scale=(values.smallest_crop, 1.0),
            flip_rate=values.flip_rate,
            color_rate=values.color_rate,
            grayscale_rate=values.grayscale_rate,
            blur_rate=values.blur_rate,
        ),
        micro_batch_size=micro_batch_size and int(micro_batch_size),
        seed=values.seed,
    )
    steps = int(dataset.cardinality())
    warmup_epochs = values.warmup_epochs
    if warmup_epochs is None:
        warmup_epochs = min(10.0, values.epochs / 10)
    schedule = simclr.warmup_cosine(
        simclr.scaled_learning_rate(values.learning_rate, values.batch_size),
        values.epochs * steps,
        warmup_steps=round(warmup_epochs * steps),
    )
    model.compile(
        simclr.LARS(
            keras.optimizers.SGD(schedule, momentum=0.9),
            weight_decay=values.weight_decay,
            trust_coefficient=values.trust_coefficient,
        ),
        simclr.NTXent(values.temperature),
    )
    return model


def _open(values, split, canvas_size, **kwargs):
    """What `--data` holds: a folder, or else its name; and its dataset."""
    import pathlib

    from keras_simclr import data, folders

    source = values.data
    if pathlib.Path(source).is_dir():
        source = folders.ImageFolder(
            source,
            manifest=values.manifest,
            split=split,
            unreadable_limit=values.unreadable_limit,
        )
    return source, data.open_dataset(
        source,
        split,
        data_dir=values.data_dir,
        canvas_size=canvas_size,
        **kwargs,
    )


def _open_to_train(values):
    from keras_simclr import data

    image_size = values.image_size or _IMAGE_SIZE
    canvas_size = data.canvas_for(image_size, values.smallest_crop)
    return _open(
        values,
        values.split,
        canvas_size,
        batch_size=values.batch_size,
        seed=values.seed,
    )


def _open_in_order(values, split, model):
    from keras_simclr import data

    canvas_size = data.canvas_for(max(model.encoder.input_shape[1:3]))
    return _open(values, split, canvas_size, **_IN_ORDER)


def _evaluate(values):
    import keras

    from keras_simclr import data, evaluation, runs

    labels = [int(x) if x.isdigit() else x for x in values.labels]
    model = runs.load_model(values.run_dir)
    source, train = _open_in_order(values, values.split, model)
    test_split, test = _test_split(values), None
    if test_split:
        _, test = _open_in_order(values, test_split, model)
    about = {
        "data": data.fingerprint(source, data_dir=values.data_dir),
        "split": values.split,
        "test_split": test_split,
        "encoders": values.encoders,
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
        class_names=_class_names(source),
        seed=values.seed,
        report=print,
    )
    summary = result.summary
    summary["evaluation"] |= about
    runs.update_summary(values.run_dir, summary)
    print(result)


def _test_split(values):
    """The test split that was asked for, or TFDS's, or None."""
    name = values.data.removeprefix("tfds:")
    if values.test_split or name == values.data:
        return values.test_split
    import tensorflow_datasets as tfds

    splits = tfds.builder(name, data_dir=values.data_dir).info.splits
    return "test" if "test" in splits else None


def _class_names(source):
    return getattr(source, "class_names", ())


def _finetune(values):
    from keras_simclr import classification, export, runs

    export.check_is_free(values.output_dir)
    model = runs.load_model(values.run_dir)
    source, train = _open_in_order(values, values.split, model)
    result = classification.train_classifier(
        model,
        train,
        values.output_dir,
        class_names=_class_names(source),
        projection_layer=values.projection_layer,
        seed=values.seed,
        report=print,
    )
    print(result)
    print(f"{values.output_dir} holds classifier.keras and saved_model/.")


def _predict(values):
    from keras_simclr import classification, data, export

    export.check_is_free(values.output_dir)
    *size, _ = classification.input_shape(values.model)
    canvas_size = data.canvas_for(max(size))
    source, images = _open(values, values.split, canvas_size, **_IN_ORDER)
    _write_table(
        source,
        values.output_dir,
        "predictions.csv",
        "classified images",
        lambda path, names: classification.write_predictions(
            values.model, images, path, names
        ),
    )


def _embed(values):
    from keras_simclr import embedding, export, runs

    export.check_is_free(values.output_dir)
    model = runs.load_model(values.run_dir)
    source, images = _open_in_order(values, values.split, model)
    _write_table(
        source,
        values.output_dir,
        f"embeddings.{values.format}",
        "representations",
        lambda path, names: embedding.write_embeddings(
            model, images, path, names
        ),
    )


def _write_table(source, output_dir, name, what, write):
    """A row for each image, and beside it a list of the files without one."""
    import csv
    import pathlib

    output_dir = pathlib.Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / name
    staged = path.with_stem("staged")
    is_folder = not isinstance(source, str)
    try:
        count = write(staged, source.readable() if is_folder else None)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    print(f"{path} holds {count} {what}.")
    if is_folder:
        others = output_dir / "skipped.csv"
        with others.open("w", newline="", errors="backslashreplace") as file:
            reasons = {**source.left_out, **source.skipped}
            csv.writer(file).writerows([("path", "reason"), *reasons.items()])
        print(f"{others} lists {len(reasons)} other files.")


def _export(values):
    from keras_simclr import export, runs

    export.check_formats(values.formats)
    export.check_is_free(values.output_dir)
    model = runs.load_model(values.run_dir)
    path = export.export_encoder(
        model,
        values.output_dir,
        formats=values.formats,
        about=runs.about(values.run_dir),
    )
    print(f"{path} holds {', '.join(sorted(x.name for x in path.iterdir()))}.")


def _import_official(values):
    from keras_simclr import official

    result = official.import_official(
        values.path,
        values.output_dir,
        projection_layer=values.projection_layer,
    )
    for name, value in result.info.items():
        print(f"{name}: {value}")
    parts = "model.keras and export/"
    if result.classifier is not None:
        parts = "model.keras, export/ and classifier/"
    print(f"{values.output_dir} holds {parts}.")
