"""What `distill` does: its flags, and a student's run directory."""

import dataclasses
import pathlib

import keras

from keras_simclr import (
    classification,
    classifiers,
    copies,
    distillation,
    fingerprints,
    flag_texts,
    pretrained,
    recipe as recipes,
    runs,
)

_CLASSIFIER = "classifier"  # In the directory of a run.
_OF_LABELS = "labelled", "label_weight"  # Fields.


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationRecipe(recipes.Recipe):
    """How to distil; `keras-simclr distill --help` explains each field.

    Of `recipe.Recipe`, what says how pairs of views are compared has no effect.

    Example:

    >>> recipe = DistillationRecipe(teacher="classifier", depth=18, epochs=2)
    >>> recipe.values["teacher"], "decoupled" in recipe.values
    ('classifier', False)
    """

    command = "distill"

    teacher: str = dataclasses.field(metadata={"rule": None})
    temperature: float | None = dataclasses.field(
        default=None, metadata={"rule": ("positive_number", {})}
    )
    labelled: str | None = dataclasses.field(
        default=None, metadata={"rule": None}
    )
    label_weight: float = dataclasses.field(
        default=distillation.LABEL_WEIGHT, metadata={"rule": None}
    )
    views: int = dataclasses.field(default=1, metadata={"rule": None})

    def __post_init__(self):
        super().__post_init__()
        distillation.checked_weight(self.labelled, self.label_weight)

    @property
    def values(self):
        idle = recipes.OF_CONTRAST - {"temperature"}
        if self.labelled is None:
            idle |= {*_OF_LABELS}
        values = super().values
        return {k: value for k, value in values.items() if k not in idle}

    @property
    def teaches_classes(self):
        """Whether the teacher is a classifier, that `finetune` wrote."""
        return classifiers.is_classifier(self.teacher)

    def open_teacher(self, student=None):
        """The network that teaches, and its classes; None of an encoder."""
        if self.teaches_classes:
            return distillation.open_classifier(self.teacher)
        return distillation.encoder_in_float32(self.teacher, student), None

    def open(self, data, **kwargs):
        source, dataset = super().open(data, **kwargs)
        if self.labelled is None:
            return source, dataset
        _, examples = self.open_labelled(data)
        return source, distillation.beside(dataset, examples, self)

    def labelled_data(self, data):
        """`recipe.Data` of the labelled images, read as the others."""
        return data.and_test(self.labelled, "train")[1]

    def open_labelled(self, data):
        """Source, and what `load_with_classes` returns, of labelled images."""
        options = {"shuffle": False, "drop_remainder": False}
        source, images = super().open(self.labelled_data(data), **options)
        classes = classifiers.class_names(self.teacher)
        return source, distillation.load_with_classes(images, classes)

    def build(self, element_spec, steps, more_epochs=(), source=None):
        shape = self.input_shape(element_spec)
        encoder, augmentation = self.encoder(shape), self.augmentation(shape)
        if self.start_from is not None:
            is_cached = self.micro_batch_size is not None
            pretrained.check_chance(encoder, is_cached=is_cached)
            keras.utils.set_random_seed(self.seed)  # As `Recipe.build`.
        teacher, classes = self.open_teacher(encoder)
        loss = distillation.similarity_loss(self.temperature)
        if classes is not None:
            augmentation = distillation.without_colors(augmentation)
            own = self.labelled, self.label_weight
            weight = distillation.checked_weight(*own)
            loss = distillation.class_loss(self.temperature, weight)
        parts = (teacher, encoder, augmentation, loss)
        return distillation.distiller(*parts, self, steps, more_epochs)


def check_directory(run_dir, teacher):
    """As `runs.check_can_run`, but for a run that lacks its classifier yet."""
    if not _lacks_classifier(run_dir, teacher):
        runs.check_can_run(run_dir)


def _lacks_classifier(run_dir, teacher):
    is_finished = runs.read_summary(run_dir).get("finished", False)
    is_written = pathlib.Path(run_dir, _CLASSIFIER).exists()
    is_its_own = runs.recorded_flags(run_dir).get("teacher") == teacher
    of_classes = classifiers.is_classifier(teacher) and is_its_own
    return of_classes and is_finished and not is_written


def teach(
    recipe,
    data,
    run_dir,
    *,
    test=None,
    given=None,
    accept_changed_data=False,
    keeping=None,
    report=print,
    progress=None,
):
    """Does what `keras-simclr distill` does.

    Beside what `runs.carry_out` writes, the directory gets `classifier/`, as
    from `finetune`, if the teacher is one.

    Args:
        recipe: `DistillationRecipe`.
        data: `recipe.Data` of the images without labels.
        run_dir: As `runs.carry_out`.
        test: `recipe.Data` of labelled images to test both on, or None.
        given: As `runs.carry_out`.
        accept_changed_data: As `runs.carry_out`.
        keeping: As `runs.carry_out`.
        report: As `runs.carry_out`.
        progress: As `runs.carry_out`.

    Returns:
        A `runs.Run`.

    Raises:
        FileExistsError: As `runs.carry_out`.
        OSError: As `runs.carry_out`.
        ValueError: As `runs.carry_out`, `distill` and `distill_encoder`; or if
            there are labels, and no classes are taught.

    Example:

    ```python
    data = simclr.recipe.Data(data="photos")
    recipe = DistillationRecipe(teacher="classifier", width_multiplier=0.25)
    teach(recipe, data, "runs/small")
    ```
    """
    recipe = _with_recorded_labels(recipe, run_dir)
    teacher, classes = recipe.open_teacher()
    if classes is None:
        _refuse_labels(recipe, test)
    weights = copies.weights_digest(teacher)
    about = {"teacher": {"name": recipe.teacher, "weights": weights}}
    data, test = (
        part and runs.as_seen(part, recipe.teacher, teacher.input_shape[-1])
        for part in (data, test)
    )
    if recipe.labelled is not None:
        about["labelled"] = _introduce(recipe, data, report)
    _check_goes_on(run_dir, about, accept_changed_data)
    exam = test and _exam(recipe, teacher, classes, data, test, report)
    if _lacks_classifier(run_dir, recipe.teacher):
        epochs = runs.read_summary(run_dir)["epochs_trained"]
        done = runs.Run(runs.load_model(run_dir), recipe, epochs, epochs)
    else:
        done = runs.carry_out(
            recipe,
            data,
            run_dir,
            given=given,
            accept_changed_data=accept_changed_data,
            about=about,
            doctor=False,  # It looks at two views of each image.
            keeping=keeping,
            report=report,
            progress=progress,
        )
    if classes is not None and done.epochs == done.all_epochs:
        _write_classifier(done.model, run_dir, classes, data, exam, report)
    return done


def _write_classifier(model, run_dir, classes, data, exam, report):
    network = distillation.student_classifier(model)
    if exam:
        accuracy, _ = exam.take(network, model)
        of_both = accuracy, exam.teacher_accuracy
        found = distillation.accuracies_in_words(*of_both)
        report(f"On images to test on: {found}.")
        names = ("accuracy", "teacher_accuracy")
        test = dict(zip(names, of_both, strict=True))
        runs.update_summary(run_dir, {"test": test})
    directory = pathlib.Path(run_dir, _CLASSIFIER)
    classification.write_classifier(
        model, network, directory, list(classes), data
    )


def _refuse_labels(recipe, test):
    """Refuses labels where no classes are taught."""
    cures = {
        "test_data": (test, "`evaluate` tests what it has taught"),
        "labelled": (
            recipe.labelled,
            "`finetune` makes a classifier of it and them, which can teach",
        ),
    }
    for name, (value, cure) in cures.items():
        if value is not None:
            raise ValueError(
                f"`{name}` is for a classifier. Received: the teacher "
                f"{recipe.teacher!r}, an encoder. {cure}"
            )


def _with_recorded_labels(recipe, run_dir):
    """The recipe with the labels that an unfinished run began with."""
    recorded = runs.recorded_flags(run_dir)
    if recipe.labelled is not None or "labelled" not in recorded:
        return recipe
    texts = {name: recorded[name] for name in _OF_LABELS}
    values = flag_texts.from_text(DistillationRecipe, texts)
    return dataclasses.replace(recipe, **values)


def _introduce(recipe, data, report):
    """Says what the labelled images are; which they are, for the record."""
    source, _ = recipe.open_labelled(data)  # Refuses others now.
    data = recipe.labelled_data(data)
    report(f"Labelled: {data.in_words(source)}.")
    return fingerprints.fingerprint(source, data_dir=data.data_dir)


def _exam(recipe, teacher, classes, data, test, report):
    """The `Exam` of teacher and student, on images at rest."""
    side = max(teacher.input_shape[1:3])
    source, images = test.open_in_order(side)
    report(f"To test on: {test.in_words(source)}.")
    shown = [data]
    if recipe.labelled is not None:
        shown.append(recipe.labelled_data(data))
    shown = [part.open_in_order(side)[1] for part in shown]
    return distillation.Exam(images, teacher, classes, shown, report=report)


def _check_goes_on(run_dir, about, accepts):
    """Refuses to go on with a run that had another teacher, or other labels."""
    known = runs.read_summary(run_dir)
    teacher = known.get("teacher")
    if teacher and teacher["weights"] != about["teacher"]["weights"]:
        raise ValueError(
            "An unfinished run goes on with the teacher that it began with. "
            f"Received: {teacher['name']!r} with other weights than "
            f"{run_dir!r} began with. Bring those back, or begin anew in "
            "another directory"
        )
    labelled = known.get("labelled")
    if labelled and labelled != about.get("labelled") and not accepts:
        raise ValueError(
            "An unfinished run goes on with the labelled images that it began "
            f"with. Received: others than {run_dir!r} began with, of "
            f"{labelled['source']!r}. Bring those back, begin anew in another "
            "directory, or go on with these: --accept_changed_data "
            "(accept_changed_data=True)"
        )
