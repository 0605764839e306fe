"""What each command of the command line does with its parsed flags.

The flags themselves, their help and their checks are `keras_simclr_cli.py`'s,
which imports this when all of them are right.
"""

import dataclasses
import pathlib

from keras_simclr import (
    _files,
    _terminal,
    classification,
    demo,
    embedding,
    evaluation,
    export,
    finetuning,
    fingerprints,
    official,
    planning,
    recipe,
    runs,
    sources,
    tables,
)


def perform(command, values):
    """Runs a command.

    Args:
        command: Name of the command.
        values: Parsed `absl.flags.FlagValues`.

    Returns:
        Exit code, or None for 0.
    """
    # The function that is named as the command.
    return globals()[f"_{command.replace('-', '_')}"](values)


def _remarks(values):
    """What is told what is said on the way."""
    return (lambda text: None) if values.quiet else print


def _progress(values, unit):
    """What is told how far work is, or None."""
    return None if values.quiet else _terminal.progress(unit)


def _demo(values):
    demo.run(
        values.output_dir,
        seed=values.seed,
        report=_remarks(values),
        progress=_progress(values, "step"),
    )


def _scan(values):
    name, progress = "manifest.parquet", _progress(values, "file")
    with _files.staging(values.output_dir) as staged:
        manifest = staged / name
        print(sources.scan_source(values.data, manifest, progress=progress))
    print(f"{pathlib.Path(values.output_dir, name)} describes every file.")


def _fields(kind, values):
    """An object of that class, of the flags that are its fields."""
    names = [x.name for x in dataclasses.fields(kind) if x.name in values]
    return kind(**{name: values[name].value for name in names})


def _data(values):
    return _fields(recipe.Data, values)


def _open_as_seen(values, directory, network, purpose):
    """Images for a network that a directory holds; what they are is printed."""
    shape = network.input_shape
    data = runs.as_seen(_data(values), directory, shape[-1])
    source, images = data.open_in_order(max(shape[1:3]))
    _remarks(values)(f"{purpose}: {data.in_words(source)}.")
    return data, source, images


def _pretrain(values):
    with _files.naming("output_dir"):
        runs.check_can_run(values.output_dir, more_epochs=values.more_epochs)
    done = runs.carry_out(
        _fields(recipe.Recipe, values),
        _data(values),
        values.output_dir,
        given=[name for name in values if values[name].present],
        accept_changed_data=values.accept_changed_data,
        more_epochs=values.more_epochs,
        doctor=values.doctor,
        tensorboard=values.tensorboard,
        report=_remarks(values),
        progress=_progress(values, "step"),
    )
    step = int(done.model.optimizer.iterations.numpy())
    print(f"{values.output_dir} keeps the model after step {step}.")
    if done.epochs < done.all_epochs:
        print(f"Interrupted after {done.epochs} of {done.all_epochs} epochs.")
        return 130
    return 0


def _plan(values):
    fields = _fields(recipe.Recipe, values)
    print(
        planning.plan(
            fields,
            _data(values),
            hours=values.hours,
            report=_remarks(values),
            progress=_progress(values, "measurement"),
        )
    )


def _evaluate(values):
    given = {x: values[x].value for x in values if values[x].present}
    labels = [int(x) if x.isdigit() else x for x in given.get("labels", ())]
    model = runs.load_model(values.run_dir)
    runs.read_summary(values.run_dir)  # It can be read, and written later.
    _files.check_can_write(values.run_dir)
    *_, channels = shape = model.encoder.input_shape
    data = runs.as_seen(_data(values), values.run_dir, channels)
    data, held_out = data.and_test(values.test_data, values.test_split)
    source, train = data.open_in_order(max(shape[1:3]))
    _remarks(values)(f"To learn from: {data.in_words(source)}.")
    test = None
    if held_out:
        test_source, test = held_out.open_in_order(max(shape[1:3]))
        _remarks(values)(f"To test on: {held_out.in_words(test_source)}.")
    about = {
        "data": fingerprints.fingerprint(source, data_dir=data.data_dir),
        "split": data.split,
        "test_split": held_out and held_out.split,
        "test_data": values.test_data,
    }
    result = evaluation.evaluate(
        model,
        train,
        test,
        probes=given.get("probes"),
        labels=labels or None,
        draws=values.draws,
        thorough=values.thorough,
        encoders=runs.encoders_beside(
            values.run_dir, values.encoders, _remarks(values)
        ),
        projection_layer=values.projection_layer,
        features_dir=pathlib.Path(values.run_dir, "features"),
        seed=values.seed,
        report=_remarks(values),
        progress=_progress(values, "image"),
    )
    print(result)  # Storing may still fail.
    summary = result.summary
    summary["evaluation"] |= about
    runs.update_summary(values.run_dir, summary)


def _finetune(values):
    name = values.encoder or values.run_dir
    model = finetuning.named_model(name)
    data, _, train = _open_as_seen(values, name, model.encoder, "To learn from")
    classification.train_classifier(
        model,
        train,
        values.output_dir,
        projection_layer=values.projection_layer,
        bits=data.bits,
        seed=values.seed,
        report=_remarks(values),
        progress=_progress(values, "image"),
    )
    print(f"{values.output_dir} holds classifier.keras and saved_model/.")


def _predict(values):
    network = classification.load_classifier(values.model)
    data, source, images = _open_as_seen(values, values.model, network, "Found")
    tables.write_table(
        values.output_dir,
        "predictions.csv",
        "classified images",
        lambda *path_and_names: classification.write_predictions(
            values.model, images, *path_and_names, _progress(values, "image")
        ),
        data=data,
        source=source,
        model=network,
    )


def _embed(values):
    model = runs.load_model(values.run_dir)
    data, source, images = _open_as_seen(
        values, values.run_dir, model.encoder, "Found"
    )
    tables.write_table(
        values.output_dir,
        f"embeddings.{values.format}",
        "representations",
        lambda *path_and_names: embedding.write_embeddings(
            model, images, *path_and_names, _progress(values, "image")
        ),
        data=data,
        source=source,
        model=model,
    )


def _export(values):
    export.check_formats(values.formats)
    model = runs.load_model(values.run_dir)
    path = export.export_encoder(
        model,
        values.output_dir,
        formats=values.formats,
        about=runs.about(values.run_dir, model),
        report=_remarks(values),
        progress=_progress(values, "format"),
    )
    print(f"{path} holds {', '.join(sorted(x.name for x in path.iterdir()))}.")


def _import_official(values):
    result = official.import_official(
        values.path,
        values.output_dir,
        projection_layer=values.projection_layer,
        image_size=values.image_size,
        progress=_progress(values, "part"),
    )
    for name, value in result.info.items():
        print(f"{name}: {value}")
    parts = "model.keras and export/"
    if result.classifier is not None:
        parts = "model.keras, export/ and classifier/"
    print(f"{values.output_dir} holds {parts}.")
