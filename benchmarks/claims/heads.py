"""Projection heads: none, linear, nonlinear; the probe before and after.

    python benchmarks/claims/heads.py [--quick] [--seeds=N] [--data_dir=DIR]

Half an hour on two cores of an Intel Xeon.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks.claims import training, trials, verdicts

_LAYERS = {"none": 0, "linear": 1, "nonlinear": 2}


def configurations(seed, _):
    """One run for each head."""
    for head in _LAYERS:
        yield {**training.RECIPE, "head": head, "seed": seed}


def work(config, data):
    """Probes h, and z behind the head."""
    layers = _LAYERS[config["head"]]
    model, last = training.pretrain(config, data.train[0], layers=layers)
    transforms = {"accuracy_of_z": model.projection_head} if layers else {}
    return {
        **training.probes(config, model, data, **transforms),
        "contrastive_accuracy": round(last["contrastive_accuracy"], 4),
    }


def statements(runs):
    """What figure 8 and section 4.2 lead one to expect."""
    h = {head: verdicts.by_seed(runs, head=head) for head in _LAYERS}
    runs = [run for run in runs if run["config"]["head"] == "nonlinear"]
    z = verdicts.by_seed(runs, "accuracy_of_z")
    return [
        verdicts.statement(text, verdicts.differences(first, second))
        for text, first, second in (
            (
                "A nonlinear head is better than a linear one.",
                h["nonlinear"],
                h["linear"],
            ),
            (
                "A nonlinear head is better than none.",
                h["nonlinear"],
                h["none"],
            ),
            (
                "h, before the nonlinear head, is better than z, behind it.",
                h["nonlinear"],
                z,
            ),
        )
    ]


CLAIM = trials.Claim(
    name="heads",
    title="A nonlinear projection head",
    paper="Section 4.2, figure 8: a nonlinear head is better than a linear "
    "one (+3 %), and much better than none (more than 10 %); the layer before "
    "it, h, is better than the layer behind it, z (more than 10 %).",
    here="h and z have 128 features here; the paper's h has 2,048.",
    configurations=configurations,
    work=work,
    statements=statements,
)

if __name__ == "__main__":
    trials.main(CLAIM)
