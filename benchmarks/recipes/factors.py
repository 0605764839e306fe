r"""What each part of `pretrain`'s recipe is worth in the same time.

    python benchmarks/recipes/factors.py --cifar10=CIFAR10.npz [--minutes=3] \
        [--data=cifar10] [--runs=24] [--only_table]

Draws recipes from `LEVELS`, each level of a factor as often as the others, and
of many such designs takes that whose effects are best told apart. Each recipe
trains for the same time (`minutes.py`), and least squares says what each level
is worth beside the first of its factor: so all trainings tell something of all
factors. Effects are taken to add up.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import numpy as np
import scipy.stats

from benchmarks.recipes import minutes
from benchmarks.results import markdown, report

BASE = {"depth": 10, "width_multiplier": 0.25}
# Flags of `pretrain`; the first level of each is what the others are beside.
LEVELS = {
    "views": (2, 4, 8),
    "views a step": (512, 256, 128),
    "temperature": (0.2, 0.1, 0.5),
    "decoupled": (False, True),
    "learning_rate": (1.0, 0.5, 2.0),
    "strength": (1.0, 0.5),
    "blur_rate": (0.5, 0.0),
    "grayscale_rate": (0.2, 0.1),
    "smallest_crop": (0.2, 0.08, 0.4),
    "projection_layers": (2, 3),
}
_DESIGNS = 4000


def main():
    """Reads the flags and runs."""
    parser = minutes.parser(__doc__)
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--only_table", action="store_true")
    values = parser.parse_args()
    places = design(values.runs)
    changes = [change_of(row) for row in places]
    if not values.only_table:
        minutes.measure(changes, values)
    results = []
    for change in changes:
        if values.only_table and not minutes.is_stored(change, 0, values):
            continue
        results.append((change, minutes.run(change, 0, values)))
    kept = [changes.index(change) for change, _ in results]
    report(table(places[kept], [result for _, result in results]))


def change_of(places):
    """The flags of a row of a design: a place in each factor's levels."""
    change = dict(BASE)
    for place, (name, levels) in zip(places, LEVELS.items(), strict=True):
        level = levels[place]
        if name == "views a step":
            change["batch_size"] = level // change["views"]
        else:
            change[name] = level
    return change


def design(runs, seed=0):
    """Places of levels, (runs, factors): balanced, and easy to tell apart.

    Example:

    >>> design(24).shape
    (24, 10)
    """
    rng = np.random.default_rng(seed)

    def drawn():
        columns = []
        for levels in LEVELS.values():
            column = np.arange(runs) % len(levels)
            columns.append(rng.permutation(column))
        return np.stack(columns, axis=1)

    designs = [drawn() for _ in range(_DESIGNS)]
    return max(designs, key=lambda x: np.linalg.slogdet(_gram(x))[1])


def _gram(places):
    terms = _terms(places)
    return terms.T @ terms


def _terms(places):
    """The matrix of least squares: 1, and whether each level is there."""
    columns = [np.ones(len(places))]
    for factor, levels in enumerate(LEVELS.values()):
        for place in range(1, len(levels)):
            columns.append(places[:, factor] == place)
    return np.stack(columns, axis=1).astype("float64")


def effects(places, scores):
    """What each level adds to a score, and half its 95 % interval.

    Args:
        places: As from `design`.
        scores: One for each row.

    Returns:
        Pair of arrays: of the mean recipe of first levels, and then of each
        further level.
    """
    terms = _terms(places)
    found, *_ = np.linalg.lstsq(terms, scores, rcond=None)
    freedom = len(terms) - terms.shape[1]
    variance = np.sum((scores - terms @ found) ** 2) / freedom
    spread = np.sqrt(variance * np.diag(np.linalg.inv(terms.T @ terms)))
    return found, scipy.stats.t.ppf(0.975, freedom) * spread


def table(places, results):
    """Effects in points of each probe, in Markdown."""
    columns = []
    for probe in minutes.PROBES:
        scores = 100 * np.array([result[probe] for result in results])
        found = zip(*effects(places, scores), strict=True)
        columns.append([f"{x:+.1f} ± {half:.1f}" for x, half in found])
    names = [f"({len(results)} runs)"]
    for name, levels in LEVELS.items():
        for level in levels[1:]:
            names.append(f"{name}: {level} instead of {levels[0]}")
    rows = [[name, *row] for name, *row in zip(names, *columns, strict=True)]
    return markdown(["change", *minutes.PROBES], rows)


if __name__ == "__main__":
    main()
