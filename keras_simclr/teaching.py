"""What `distill` does: its flags, and a student's run directory."""

import dataclasses
import pathlib

import keras

from keras_simclr import (
    classification,
    copies,
    distillation,
    pretrained,
    recipe as recipes,
    runs,
)

_CLASSIFIER = "classifier"  # In the directory of a run.


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
    views: int = dataclasses.field(default=1, metadata={"rule": None})

    @property
    def values(self):
        own = {"teacher": self.teacher, "temperature": self.temperature}
        of_both = {
            name: value
            for name, value in super().values.items()
            if name not in recipes.OF_CONTRAST
        }
        return {**of_both, **own}

    @property
    def teaches_classes(self):
        """Whether the teacher is a classifier, that `finetune` wrote."""
        return classification.is_classifier(self.teacher)

    def open_teacher(self, student=None):
        """The network that teaches, and its classes; None of an encoder."""
        if self.teaches_classes:
            return distillation.open_classifier(self.teacher)
        return distillation.encoder_in_float32(self.teacher, student), None

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
            loss = distillation.class_loss(self.temperature)
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
    of_classes = classification.is_classifier(teacher) and is_its_own
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
            there are images to test an encoder on.

    Example:

    ```python
    data = simclr.recipe.Data(data="photos")
    recipe = DistillationRecipe(teacher="classifier", width_multiplier=0.25)
    teach(recipe, data, "runs/small")
    ```
    """
    teacher, classes = recipe.open_teacher()
    weights = copies.weights_digest(teacher)
    _check_teacher(run_dir, weights)
    channels = teacher.input_shape[-1]
    data, exam = runs.as_seen(data, recipe.teacher, channels), None
    if test is not None:
        if classes is None:
            raise ValueError(
                "`test_data` is for a classifier. Received: the teacher "
                f"{recipe.teacher!r}, an encoder. `evaluate` tests what it "
                "has taught"
            )
        test = runs.as_seen(test, recipe.teacher, channels)
        side = max(teacher.input_shape[1:3])
        (source, images), (_, unlabelled) = (
            part.open_in_order(side) for part in (test, data)
        )
        report(f"To test on: {test.in_words(source)}.")
        exam = distillation.Exam(
            images, teacher, classes, unlabelled, report=report
        )
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
            about={"teacher": {"name": recipe.teacher, "weights": weights}},
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


def _check_teacher(run_dir, weights):
    """Refuses to go on with a run whose teacher had other weights."""
    known = runs.read_summary(run_dir).get("teacher")
    if known and known["weights"] != weights:
        raise ValueError(
            "An unfinished run goes on with the teacher that it began with. "
            f"Received: {known['name']!r} with other weights than {run_dir!r} "
            "began with. Bring those back, or begin anew in another directory"
        )
