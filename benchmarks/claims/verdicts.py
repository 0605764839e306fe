"""Statements of a claim, and by what rule they hold."""

import dataclasses
import math
import statistics

from scipy import stats


@dataclasses.dataclass(frozen=True)
class Statement:
    """A sentence and whether it is so.

    Attributes:
        text: What the paper leads one to expect.
        verdict: Holds, does not hold, open or not run.
        evidence: The numbers.
    """

    text: str
    verdict: str
    evidence: str


def statement(text, differences, above=0.0):
    """Judges from differences that should lie above a number.

    It holds if the 95 % interval of their mean lies above `above`, does not
    hold if it lies below, and is open otherwise.

    Args:
        text: The sentence.
        differences: Shares of 1, one for each seed.
        above: Share of 1.

    Returns:
        A `Statement`.
    """
    if not differences:
        return Statement(text, "not run", "")
    mean, half = interval(differences)
    if mean - half > above:
        verdict = "holds"
    elif mean + half < above:
        verdict = "does not hold"
    else:
        verdict = "open"
    evidence = f"{100 * mean:+.2f} points, one seed"
    if len(differences) > 1:
        low, high = 100 * (mean - half), 100 * (mean + half)
        evidence = (
            f"{100 * mean:+.2f} points ({low:+.2f} to {high:+.2f}), "
            f"{len(differences)} seeds"
        )
    return Statement(text, verdict, evidence)


def interval(values):
    """Mean, and half the width of its 95 % t interval.

    Args:
        values: Numbers, one for each seed.

    Returns:
        Pair of numbers; the second is infinite for a single value.
    """
    if len(values) < 2:
        return values[0], math.inf
    quantile = stats.t.ppf(0.975, len(values) - 1)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def by_seed(runs, measure="accuracy", **where):
    """A measure of the runs with these settings, by their seeds."""
    return {
        run["config"]["seed"]: run["result"][measure]
        for run in runs
        if where.items() <= run["config"].items()
    }


def differences(first, second):
    """First less second, for the seeds that both have."""
    return [
        first[seed] - second[seed] for seed in sorted(first.keys() & second)
    ]
