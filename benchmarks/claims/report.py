"""Writes docs/claims.md and its pictures from what is stored.

    python benchmarks/claims/report.py

Ten seconds.
"""

import collections
import importlib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks.claims import trials, verdicts
from benchmarks.results import markdown, stored

_CLAIMS = (
    "augmentations",
    "heads",
    "losses",
    "temperature",
    "batch_and_epochs",
    "width",
    "few_labels",
)
_DOCS = pathlib.Path(__file__).parents[2] / "docs"
_RULE = """\
Which claims of Chen et al. 2020
([arXiv:2002.05709](https://arxiv.org/abs/2002.05709)) hold at a scale that two
CPU cores can run: small images, a small network, few epochs. What does not
hold here may well hold at the paper's scale.

`benchmarks/claims/report.py` writes this page from
`benchmarks/claims/results/`. The verdicts come from one rule. Each statement
is a difference of accuracies that should lie above 0 (or above the number that
the statement names), taken seed by seed. With the 95 % t interval of its mean
over the seeds, it **holds** if the interval lies above, **does not hold** if
it lies below, and is **open** if neither is so, or if there is one seed only.
The intervals say what other seeds would give with the same images; with other
test images a difference may move by another point (of 10,000; by two of clip
art's 2,038). They are not corrected for the number of statements, nor for a
second look: of the claims with six seeds three were looked at before the other
three were run.

All networks are ResNet-10 with the CIFAR stem and start anew for each seed,
which also draws the views and the order of the images; the images themselves
are the same. Unless a table says otherwise, training is that of `keras-simclr
pretrain`: LARS, a learning rate of 1.0 x batch / 256 (warm-up for a tenth,
then cosine), temperature 0.2, crops of at least 0.2, mixed_bfloat16.
Accuracies are of a linear probe, a logistic regression on standardised
representations of the training images (`simclr.linear_probe`), on all test
images; 0 if training diverged. Fashion-MNIST is a fixed random part of its
training images and its 10,000 test images; clip art is Open Clip Art 0.18,
without duplicates, its folders of at least 100 images as classes, a third to
test on."""
_MEASURES = {
    "accuracy": "accuracy, %",
    "accuracy_of_z": "accuracy of z, %",
    "accuracy_from_scratch": "from scratch, %",
    "contrastive_accuracy": "contrastive accuracy, %",
}


def main():
    """Writes the page."""
    _DOCS.mkdir(exist_ok=True)
    claims = [
        importlib.import_module(f"benchmarks.claims.{name}").CLAIM
        for name in _CLAIMS
    ]
    parts = ["# The paper's claims, on two cores", _RULE, _overview(claims)]
    parts += [_section(claim) for claim in claims]
    (_DOCS / "claims.md").write_text("\n\n".join(parts) + "\n")


def _overview(claims):
    rows = []
    for claim in claims:
        found = [x.verdict for x in claim.statements(_stored(claim))]
        counts = collections.Counter(found)
        cells = [counts[x] for x in ("holds", "does not hold", "open")]
        if counts["not run"] == len(found):
            cells = ["not run", "", ""]
        link = claim.title.lower().replace(" ", "-")
        link = "".join(x for x in link if x.isalnum() or x == "-")
        rows.append([f"[{claim.title}](#{link})", *map(str, cells)])
    heads = ["statements on", "hold", "do not hold", "open"]
    return markdown(heads, rows)


def _stored(claim):
    return stored(trials.RESULTS / f"{claim.name}.json")


def _section(claim):
    runs = _stored(claim)
    parts = [f"## {claim.title}", f"The paper: {claim.paper}"]
    parts.append(f"Here: {claim.here}")
    found = claim.statements(runs)
    parts.append(
        markdown(
            ["statement", "verdict", "difference"],
            [[x.text, f"**{x.verdict}**", x.evidence] for x in found],
        )
    )
    if not runs:
        return "\n\n".join([*parts, "Not run yet."])
    picture = _DOCS / f"claims_{claim.name}.png"
    _draw(claim, runs, picture)
    parts.append(f"![{claim.title}]({picture.name})")
    for where, title in (("test", ""), ("held_out", "Chosen on, held out:")):
        part = [x for x in runs if x["config"]["evaluated_on"] == where]
        if part:
            parts += [title] * bool(title) + [_table(part)]
    parts.append(_circumstances(runs))
    return "\n\n".join(parts)


def _table(runs):
    """Settings that differ, and the measures with their intervals."""
    varied = _varied(runs)
    measures = [x for x in _MEASURES if any(x in r["result"] for r in runs)]
    rows = []
    for values, group in _groups(runs, varied).items():
        cells = [_text(value) for value in values]
        for measure in measures:
            found = [
                r["result"][measure] for r in group if measure in r["result"]
            ]
            cells.append(_mean_and_interval(found) if found else "")
        cells.append(str(len(group)))
        rows.append(cells)
    heads = [name.replace("_", " ") for name in varied]
    heads += [_MEASURES[measure] for measure in measures]
    return markdown([*heads, "seeds"], rows)


def _varied(runs):
    """Names of the settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run["config"])
    return [
        name
        for name in names
        if name != "seed" and len({run["config"].get(name) for run in runs}) > 1
    ]


def _groups(runs, varied):
    """Runs by the settings that differ, whatever their seed."""
    groups = collections.defaultdict(list)
    for run in runs:
        groups[tuple(run["config"].get(x) for x in varied)].append(run)
    return groups


def _text(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value}"


def _mean_and_interval(values):
    mean, half = verdicts.interval([100 * value for value in values])
    return f"{mean:.2f}" if len(values) < 2 else f"{mean:.2f} ± {half:.2f}"


def _circumstances(runs):
    """What is the same in all runs that are tested, and where they ran."""
    tested = [x for x in runs if x["config"]["evaluated_on"] == "test"] or runs
    varied = {*_varied(tested), "seed", "evaluated_on"}
    settings = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in tested[0]["config"].items()
        if name not in varied
    ]
    machines = {f"{x['cpu']}, {x['cores']} cores" for x in runs}
    versions = {
        ", ".join(f"{k} {v}" for k, v in x["versions"].items()) for x in runs
    }
    days = sorted({x["date"] for x in runs})
    days = " to ".join(dict.fromkeys((days[0], days[-1])))
    return (
        f"All: {', '.join(settings)}. {'; '.join(sorted(machines))}; "
        f"{'; '.join(sorted(versions))}; {days}."
    )


def _draw(claim, runs, path):
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    (claim.plot or _points)(runs, axes)
    axes.set_title(claim.title)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _points(runs, axes):
    """Each run as a dot, with means and intervals."""
    runs = [run for run in runs if run["config"]["evaluated_on"] == "test"]
    # A loss has one learning rate only: it does not name it.
    varied = [x for x in _varied(runs) if x not in ("learning_rate", "epochs")]
    groups = _groups(runs, varied)
    measures = [x for x in _MEASURES if x.startswith("accuracy")]
    for shift, measure in enumerate(measures):
        for place, group in enumerate(groups.values()):
            found = [
                100 * run["result"][measure]
                for run in group
                if measure in run["result"]
            ]
            if not found:
                continue
            mean, half = verdicts.interval(found)
            axes.errorbar(
                place + shift / 5,
                mean,
                half if len(found) > 2 else 0,
                marker="_",
                markersize=20,
                capsize=3,
                color=f"C{shift}",
                label=_MEASURES[measure] if place == len(groups) - 1 else None,
            )
            places = [place + shift / 5] * len(found)
            axes.plot(places, found, ".", color=f"C{shift}")
    labels = [
        "\n".join(_label(n, x) for n, x in zip(varied, values, strict=True))
        for values in groups
    ]
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", labelsize=8)
    axes.margins(x=0.1)
    axes.set_ylabel("test accuracy, %")
    axes.legend()


def _label(name, value):
    if isinstance(value, bool):
        return name if value else f"not\n{name}"
    return str(value).replace(", ", "\n")


if __name__ == "__main__":
    main()
