"""Small networks taught by big ones, beside what they learn by themselves.

    python benchmarks/claims/distillation.py [--quick] [--seeds=N] \
        [--data_dir=DIR] [--cifar10=CIFAR10.npz]

Not run yet; of a seed and a data set expect an hour of CPU time.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import keras
import numpy as np

import keras_simclr as simclr
from benchmarks.claims import trials, verdicts
from keras_simclr.recipe import Recipe
from keras_simclr.sampling import draw_labelled

_SETTINGS = {
    "images": 10_000,
    "labels_per_class": 10,
    "teacher_width": 0.5,
    "width": 0.25,
    "epochs": 6,
    "batch_size": 64,
    "distilled_epochs": 12,
    "distilled_batch_size": 128,
    "temperature": 1.0,
    "evaluated_on": "test",
}


def configurations(seed, _):
    """One run for each data set."""
    for data in ("fashion_mnist", "cifar10"):
        yield {"data": data, **_SETTINGS, "seed": seed}


def work(config, data):
    """Pretrains both, fine-tunes both, and has the big one teach the other."""
    images, labels = data.train
    test = getattr(data, config["evaluated_on"])
    rng = np.random.default_rng(config["seed"])
    count = config["labels_per_class"]
    places = draw_labelled(labels, f"{count}", rng)
    labelled = images[places], labels[places]
    big, _ = _pretrained(config["teacher_width"], config, images)
    small, seconds = _pretrained(config["width"], config, images)
    recipe = Recipe(
        width_multiplier=config["width"],
        epochs=config["distilled_epochs"],
        batch_size=config["distilled_batch_size"],
        seed=config["seed"],
    )
    result = {}

    def accuracy(name, found):
        result[f"accuracy_{name}"] = found.accuracy
        return found

    def tuned(model):
        return simclr.fine_tune(model, labelled, test, seed=config["seed"])

    def distilled(student, unlabelled):
        return simclr.distill(
            teacher,
            unlabelled,
            test,
            student=_again(student),
            temperature=config["temperature"],
            recipe=recipe,
        )

    teacher = accuracy("of_teacher", tuned(big)).classifier
    accuracy("tuned", tuned(small))
    accuracy("distilled", distilled(small, images))
    accuracy("self_distilled", distilled(big, images))
    # As many steps on batches of the labelled images alone.
    times = -(-len(images) // len(places))
    accuracy("on_labelled", distilled(small, np.repeat(labelled[0], times, 0)))
    start = time.process_time()
    keras.utils.set_random_seed(config["seed"])
    taught = simclr.distill_encoder(
        big,
        images,
        student=recipe.encoder(images.shape[1:]),
        recipe=recipe,
    )
    result["imitation_cpu_seconds"] = round(time.process_time() - start)
    result["simclr_cpu_seconds"] = round(seconds)
    for name, model in ("of_simclr", small), ("of_imitation", taught):
        features = simclr.extract_features(model, images)
        tests = simclr.extract_features(model, test[0]), test[1]
        accuracy(name, simclr.linear_probe(features, labels, *tests))
        accuracy(
            f"{name}_{count}_labels",
            simclr.linear_probe(features[places], labels[places], *tests),
        )
    return result


def _pretrained(width, config, images):
    """The `SimCLRModel` of `pretrain`'s defaults, and its CPU seconds."""
    start = time.process_time()
    keras.utils.set_random_seed(config["seed"])
    recipe = Recipe(
        width_multiplier=width,
        epochs=config["epochs"],
        batch_size=config["batch_size"],
        seed=config["seed"],
    )
    dataset = simclr.dataset_from_arrays(
        images, batch_size=recipe.batch_size, seed=recipe.seed
    )
    model = recipe.build(dataset.element_spec, len(dataset))
    model.fit(dataset, epochs=recipe.epochs, verbose=0)
    return model, time.process_time() - start


def _again(model):
    """A model of a copy of the encoder, which training does not change."""
    encoder = keras.models.clone_model(model.encoder)
    encoder.set_weights(model.encoder.get_weights())
    return simclr.SimCLRModel(encoder, augmentation=model.augmentation)


def statements(runs):
    """What SimCLRv2 and SEED lead one to expect."""

    def of(first, second, text, above=0.0):
        return [
            verdicts.statement(
                f"{data}: {text}",
                verdicts.differences(
                    verdicts.by_seed(runs, f"accuracy_{first}", **where),
                    verdicts.by_seed(runs, f"accuracy_{second}", **where),
                ),
                above,
            )
            for data in ("fashion_mnist", "cifar10")
            for where in ({"data": data, "evaluated_on": "test"},)
        ]

    return [
        *of(
            "distilled",
            "tuned",
            "The small network is at least 2 points better distilled than "
            "pretrained and fine-tuned.",
            0.02,
        ),
        *of(
            "self_distilled",
            "of_teacher",
            "A student of the teacher's shape is better than its teacher.",
        ),
        *of(
            "distilled",
            "of_teacher",
            "The small network is no more than 1 point behind its teacher.",
            -0.01,
        ),
        *of(
            "distilled",
            "on_labelled",
            "Distilling on all images is better than on the labelled ones.",
        ),
        *of(
            "of_imitation",
            "of_simclr",
            "Without labels, an encoder is better taught than trained by "
            "SimCLR for as many seconds.",
        ),
    ]


CLAIM = trials.Claim(
    name="distillation",
    title="Small networks from big ones",
    paper="SimCLRv2 (arXiv:2006.10029), table 2: with 1 % of the labels "
    "ResNet-50 reaches 57.9 fine-tuned, 68.9 distilled from a bigger network "
    "on all images, 23.6 on the labelled ones. SEED (arXiv:2101.04731): small "
    "networks learn more from a big encoder than by contrasting.",
    here="ResNet-10 of half width teaches one of quarter width; both are "
    "pretrained with the defaults of `keras-simclr pretrain`. 10 labels per "
    "class, other ones for each seed. Classifiers are those of "
    "`simclr.fine_tune` and `simclr.distill`; students start from their "
    "pretrained weights, but those of `simclr.distill_encoder` from none. "
    "Encoders are compared by linear probes.",
    configurations=configurations,
    work=work,
    statements=statements,
    seeds=5,
)

if __name__ == "__main__":
    trials.main(CLAIM)
