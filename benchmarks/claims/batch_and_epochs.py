"""Batch sizes and numbers of epochs.

    python benchmarks/claims/batch_and_epochs.py [--quick] [--seeds=N] [...]

Forty minutes on one core of an AMD EPYC.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks.claims import training, trials, verdicts

_BATCH_SIZES = (32, 128, 512)
_EPOCHS = (3, 12)


def configurations(seed, _):
    """Every batch size with every number of epochs."""
    for epochs in _EPOCHS:
        for batch_size in _BATCH_SIZES:
            yield {
                **training.RECIPE,
                "batch_size": batch_size,
                "epochs": epochs,
                "seed": seed,
            }


def statements(runs):
    """What figure 9 leads one to expect."""
    small, large = _BATCH_SIZES[0], _BATCH_SIZES[-1]
    few, many = _EPOCHS

    def accuracy(batch_size, epochs):
        return verdicts.by_seed(runs, batch_size=batch_size, epochs=epochs)

    def gain(epochs):
        first, second = accuracy(large, epochs), accuracy(small, epochs)
        seeds = first.keys() & second
        return {seed: first[seed] - second[seed] for seed in seeds}

    return [
        verdicts.statement(
            f"With {few} epochs, batches of {large:,} are better than of "
            f"{small}.",
            list(gain(few).values()),
        ),
        verdicts.statement(
            f"That gain is smaller with {many} epochs.",
            verdicts.differences(gain(few), gain(many)),
        ),
        *(
            verdicts.statement(
                f"Batches of {size:,}: {many} epochs are better than {few}.",
                verdicts.differences(accuracy(size, many), accuracy(size, few)),
            )
            for size in _BATCH_SIZES
        ),
    ]


def plot(runs, axes):
    """A line for each number of epochs."""
    for epochs in _EPOCHS:
        points = []
        for size in _BATCH_SIZES:
            found = verdicts.by_seed(runs, batch_size=size, epochs=epochs)
            if found:
                points.append((size, *verdicts.interval(list(found.values()))))
        if points:
            sizes, means, halves = zip(*points, strict=True)
            axes.errorbar(
                sizes,
                [100 * mean for mean in means],
                [100 * half if half < 1 else 0 for half in halves],
                marker="o",
                capsize=3,
                label=f"{epochs} epochs",
            )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("linear accuracy, %")
    axes.legend()


CLAIM = trials.Claim(
    name="batch_and_epochs",
    title="Larger batches and longer training",
    paper="Section 5.2, figure 9: with few epochs (100), larger batches have a "
    "significant advantage over smaller ones; with more, the gaps decrease or "
    "disappear; training longer is better. Batches of 256 to 8,192.",
    here="The learning rate grows linearly with the batch, as in the paper's "
    "figure 9. An epoch has 8 steps of 512 images, or 128 steps of 32.",
    configurations=configurations,
    work=training.train_and_probe,
    statements=statements,
    seeds=6,
    plot=plot,
)

if __name__ == "__main__":
    trials.main(CLAIM)
