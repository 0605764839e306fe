"""Fine-tuning with few labels beside training from scratch.

    python benchmarks/claims/few_labels.py [--quick] [--seeds=N] \
        [--data_dir=DIR]

Twenty-five minutes on one core of an AMD EPYC.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import numpy as np

import keras_simclr as simclr
from benchmarks.claims import training, trials, verdicts
from keras_simclr.sampling import draw_labelled

_SHARES = (0.01, 0.1)


def configurations(seed, _):
    """One run for each share of the labels."""
    for share in _SHARES:
        yield {**training.RECIPE, "labelled": share, "seed": seed}


def work(config, data):
    """Pretrains on all images, then trains on those that have labels."""
    model, _ = training.pretrain(config, data.train[0])
    images, labels = data.train
    rng = np.random.default_rng(config["seed"])
    places = draw_labelled(labels, f"{config['labelled']:.0%}", rng)
    labelled = images[places], labels[places]
    test = getattr(data, config["evaluated_on"])
    return {
        name: simclr.fine_tune(
            model, labelled, test, from_scratch=scratch, seed=config["seed"]
        ).accuracy
        for name, scratch in (
            ("accuracy", False),
            ("accuracy_from_scratch", True),
        )
    }


def statements(runs):
    """What table 7 leads one to expect."""
    return [
        verdicts.statement(
            f"With {share:.0%} of the labels, fine-tuning is better than "
            "training from scratch.",
            verdicts.differences(
                verdicts.by_seed(runs, labelled=share),
                verdicts.by_seed(runs, "accuracy_from_scratch", labelled=share),
            ),
        )
        for share in _SHARES
    ]


CLAIM = trials.Claim(
    name="few_labels",
    title="Fine-tuning with few labels",
    paper="Section 6, table 7: with 1 % and 10 % of the labels, ResNet-50 "
    "reaches a top-5 accuracy of 75.5 and 87.8 after pretraining, 48.4 and "
    "80.4 from scratch.",
    here="Top-1 accuracy of `simclr.fine_tune`, with its defaults, on test "
    "images. Another draw of the labelled images for each seed, as many of "
    "each class: 4, or 38 to 45.",
    configurations=configurations,
    work=work,
    statements=statements,
)

if __name__ == "__main__":
    trials.main(CLAIM)
