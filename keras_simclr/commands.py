"""What each command of the command line does with its parsed flags.

The flags themselves, their help and their checks are `keras_simclr_cli.py`'s,
which imports this when all of them are right.
"""

import dataclasses
import pathlib
import shlex

from keras_simclr import (
    _files,
    _terminal,
    cards,
    checkpoints,
    classification,
    classifiers,
    data_kinds,
    demo,
    embedding,
    evaluation,
    export,
    failures,
    features,
    finetuning,
    fingerprints,
    flag_texts,
    kind_recipes,
    kinds,
    neighbours,
    official,
    planning,
    recipe,
    report,
    row_files,
    run_accounts,
    runs,
    sources,
    teaching,
)
from keras_simclr.folders import EncodedImages


def perform(command, values):
    """Runs a command; arguments and result as of `keras_simclr_cli.run`."""
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
        found = sources.scan_source(
            values.data, manifest, kind=values.kind, progress=progress
        )
        print(found)
    print(f"{pathlib.Path(values.output_dir, name)} describes every file.")


def _fields(kind, values):
    """An object of that class, of the flags that are its fields."""
    names = [x.name for x in dataclasses.fields(kind) if x.name in values]
    return kind(**{name: values[name].value for name in names})


def _data(values):
    return _fields(recipe.Data, values)


def _open_as_seen(values, directory, network, purpose, data=None):
    """Images for a network that a directory holds; what they are is told.

    `data` is by default what the flags say.
    """
    shape = network.input_shape
    data = runs.as_seen(data or _data(values), directory, shape[-1])
    source, images = data.open_in_order(max(shape[1:3]))
    _remarks(values)(f"{purpose}: {data.in_words(source)}.")
    return data, source, images


_REPORT = "report"  # Directory in that of a run.


def _pretrain(values):
    place = pathlib.Path(values.output_dir, _REPORT)
    with _files.naming("output_dir"):
        if values.report:
            _files.check_is_empty(place)
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
        keeping=_keeping(values),
        report=_remarks(values),
        progress=_progress(values, "step"),
    )
    code = _ended(done, values.output_dir)
    is_chief = done.model.distribute_strategy.extended.should_checkpoint
    if values.report and is_chief and not code:
        _write_report(
            values,
            values.output_dir,
            runs.load_model(values.output_dir),
            place,
            run_accounts.own_data(values.output_dir),
            given={"run_dir": values.output_dir},
        )
    return code


def _keeping(values):
    return {
        "minutes": values.save_minutes,
        "keep": values.keep,
        "keep_every": values.keep_every,
    }


def _ended(done, run_dir):
    """Says how far a run has come; the exit code."""
    step = int(done.model.optimizer.iterations.numpy())
    print(f"{run_dir} keeps the model after step {step}.")
    if done.epochs < done.all_epochs:
        print(
            f"Interrupted after {done.epochs} of {done.all_epochs} epochs. The "
            "same command goes on from the last checkpoint."
        )
        return 130
    return 0


def _data_of_images(values):
    """The data that the flags tell, which must be images."""
    data = kind_recipes.with_kind(_data(values))
    data_kinds.check_are_images("data", data.data, kinds.named(data.kind))
    return data


def _plan(values):
    _data_of_images(values)  # Refuses others.
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
        encoders=run_accounts.encoders_beside(
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
        data=data,
        seed=values.seed,
        report=_remarks(values),
        progress=_progress(values, "image"),
    )
    print(f"{values.output_dir} holds classifier.keras and saved_model/.")


def _distill(values):
    data, test = _data_of_images(values), None
    with _files.naming("output_dir"):
        teaching.check_directory(values.output_dir, values.teacher)
    if values.test_data or values.test_split:
        data, test = data.and_test(values.test_data, values.test_split)
    done = teaching.teach(
        _fields(teaching.DistillationRecipe, values),
        data,
        values.output_dir,
        test=test,
        given=[name for name in values if values[name].present],
        accept_changed_data=values.accept_changed_data,
        keeping=_keeping(values),
        report=_remarks(values),
        progress=_progress(values, "step"),
    )
    return _ended(done, values.output_dir)


def _predict(values):
    network = classifiers.load_classifier(values.model)
    data, source, images = _open_as_seen(values, values.model, network, "Found")
    row_files.write_table(
        values.output_dir,
        "predictions.csv",
        f"classified {kinds.named(data.kind).plural}",
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
    row_files.write_table(
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


def _report(values):
    name = values.encoder or values.run_dir
    of_data = (field.name for field in dataclasses.fields(recipe.Data))
    shown = ("run_dir", "encoder", *of_data, "labelled", "seed")
    given = {k: values[k].value for k in shown if values[k].present}
    _write_report(
        values,
        name,
        finetuning.named_model(name),
        values.output_dir,
        _given_or_own_data(values, name),
        given=given,
        labelled=values.labelled,
    )


def _given_or_own_data(values, name):
    """The images that are named or, if none are, those of the run."""
    if values.data is not None:
        return _data(values)
    own = run_accounts.own_data(name)
    names = [x for x in vars(own) if x in values and values[x].present]
    return dataclasses.replace(own, **{x: values[x].value for x in names})


def _write_report(
    values, name, model, output_dir, data, *, given, labelled=None
):
    """Writes a report of the model of a run, or of another encoder."""
    is_run = pathlib.Path(name, checkpoints.FLAGS).is_file()
    run_dir = name if is_run else None
    encoder, others = model.encoder, None
    data, source, images = _open_as_seen(values, name, encoder, "Found", data)
    if labelled is not None:
        _, with_labels = data.and_test(labelled, "train")
        _, _, others = _open_as_seen(
            values, name, encoder, "Labelled", with_labels
        )
    arguments = flag_texts.as_arguments(cards.without_places(given))
    about = report.About(
        title="" if is_run else cards.without_places(name),
        notes=tuple(run_accounts.changes(run_dir, source, data)),
        command=shlex.join(
            ["keras-simclr", "report", *arguments, "--output_dir=OUT"]
        ),
        split=data.split,
        data=cards.without_places(
            {k: v for k, v in vars(data).items() if v is not None}
        ),
    )
    report.write(
        output_dir,
        model,
        images,
        labelled=others,
        run_dir=run_dir,
        about=about,
        seed=values.seed,
        report=_remarks(values),
        progress=_progress(values, "image"),
    )
    print(f"{pathlib.Path(output_dir, report.PAGE)} shows what was learnt.")


def _search(values):
    model = runs.load_model(values.run_dir)
    data_kinds.check_are_images("run_dir", values.run_dir, model.kind)
    data = _given_or_own_data(values, values.run_dir)
    data, source, images = _open_as_seen(
        values, values.run_dir, model.encoder, "Found", data
    )
    query = features.represent_file(model, values.query, bits=data.bits)
    rows, places = features.extract_features(
        model, images, return_places=True, progress=_progress(values, "image")
    )
    nearest, similarities = neighbours.NearestNeighbours(rows).find(
        query, min(values.count, len(rows))
    )
    names = [
        source.paths[x] if isinstance(source, EncodedImages) else str(x)
        for x in places
    ]
    for place, similarity in zip(nearest[0], similarities[0], strict=True):
        print(f"{similarity:.4f} {_files.in_one_line(names[place])}")


def _export(values):
    export.check_formats(values.formats)
    if values.model:
        path = classification.export_classifier(
            values.model, values.output_dir, formats=values.formats
        )
        return _listed(path)
    model = runs.load_model(values.run_dir)
    path = export.export_encoder(
        model,
        values.output_dir,
        formats=values.formats,
        about=runs.about(values.run_dir, model),
        report=_remarks(values),
        progress=_progress(values, "format"),
    )
    return _listed(path)


def _listed(path):
    print(f"{path} holds {', '.join(sorted(x.name for x in path.iterdir()))}.")


def _replay(values):
    model = runs.load_model(values.run_dir)
    for line in failures.replay(model, values.batch):
        print(line)


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
