"""Wider encoders beside the supervised network of the smallest width.

    python benchmarks/claims/width.py [--quick] [--seeds=N] [--data_dir=DIR]

Forty-five minutes on one core of an AMD EPYC.
"""

import dataclasses
import itertools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import keras_simclr as simclr
from benchmarks.claims import training, trials, verdicts

_BASE = 0.125
_TIMES = (1, 2, 4)
_TOLERANCE = 0.01


def configurations(seed, _):
    """The base width supervised, and each width pretrained."""
    networks = [("supervised", 1), *(("simclr", times) for times in _TIMES)]
    for method, times in networks:
        yield {
            **training.RECIPE,
            "training": method,
            "width": times * _BASE,
            "seed": seed,
        }


def work(config, data):
    """Trains, with labels or without."""
    if config["training"] == "simclr":
        return training.train_and_probe(config, data)
    return {"accuracy": _supervised(config, data)}


def _supervised(config, data):
    """Test accuracy of the network trained on the labels of the same images."""
    images = data.train[0]
    recipe, shape = training.recipe_of(config, images), images.shape[1:]
    model = simclr.SimCLRModel(
        recipe.encoder(shape), augmentation=recipe.augmentation(shape)
    )
    return simclr.fine_tune(
        model,
        data.train,
        getattr(data, config["evaluated_on"]),
        from_scratch=True,
        seed=config["seed"],
    ).accuracy


def statements(runs):
    """What the abstract, figure 7 and table 6 lead one to expect."""
    supervised = verdicts.by_seed(runs, training="supervised")
    ours = {
        times: verdicts.by_seed(runs, training="simclr", width=times * _BASE)
        for times in _TIMES
    }
    widest = max(_TIMES)
    matches = verdicts.statement(
        f"A linear probe on {widest}x matches the supervised 1x network: "
        f"it is at most {100 * _TOLERANCE:g} point below.",
        verdicts.differences(ours[widest], supervised),
        above=-_TOLERANCE,
    )
    shares = [
        (ours[widest][seed] - ours[1][seed])
        / (supervised[seed] - ours[1][seed])
        for seed in sorted(set(ours[widest]) & set(ours[1]) & set(supervised))
    ]
    if shares:
        closed = ", ".join(f"{100 * share:.0f}" for share in shares)
        matches = dataclasses.replace(
            matches,
            evidence=f"{matches.evidence}; of the gap between SimCLR 1x and "
            f"the supervised 1x, {closed} % is closed",
        )
    return [
        verdicts.statement(
            f"SimCLR: {times}x is better than {before}x.",
            verdicts.differences(ours[times], ours[before]),
        )
        for before, times in itertools.pairwise(_TIMES)
    ] + [matches]


CLAIM = trials.Claim(
    name="width",
    title="Wider encoders",
    paper="Abstract, figure 7, table 6: linear probes on ResNet-50 of 1, 2 and "
    "4 times the width reach 69.3, 74.2 and 76.5, which matches the supervised "
    "ResNet-50 (76.4).",
    here=f"The base is ResNet-10 of width {_BASE:g}. The supervised network "
    "is trained by `simclr.fine_tune(..., from_scratch=True)`: with the labels "
    "of all images, on crops and flips, for 1,600 batches of 64.",
    configurations=configurations,
    work=work,
    statements=statements,
    seeds=6,
)

if __name__ == "__main__":
    trials.main(CLAIM)
