"""Curves of a training's log, as drawings in a page."""

import csv
import dataclasses
import html
import math
import pathlib

import numpy as np

# What belongs together: a title, and columns of the log.
_PANELS = (
    ("Loss divided by that of chance", ("loss_over_chance",)),
    ("Loss", ("loss",)),
    ("Contrastive accuracy", ("contrastive_accuracy",)),
    ("Accuracy of probes", ("knn_accuracy", "linear_accuracy")),
    ("RankMe", ("rankme", "rankme_z")),
    ("Projections", ("spread", "alignment", "uniformity")),
    ("Learning rate", ("learning_rate",)),
    ("Images a second", ("images_per_second",)),
)
_DASHES = ("", "6 3", "2 3")  # Lines differ without colours, too.
_WIDTH, _HEIGHT = 320, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 24, 32
_SIGNS = 7  # For which there is room on the left.
_MOST_POINTS, _MOST_ROWS = 400, 50


@dataclasses.dataclass(frozen=True)
class History:
    """What a training logged.

    Attributes:
        epochs: Array of how many epochs had been trained at each line.
        columns: Dictionary from names to arrays of as many values, NaN where
            there is none.
        marks: Tuple of `(epoch, text)`: what happened after so many epochs.
    """

    epochs: np.ndarray
    columns: dict
    marks: tuple = ()

    def last(self, name):
        """The last value of a column, or None."""
        values = self.columns.get(name, np.array([]))
        values = values[np.isfinite(values)]
        return float(values[-1]) if len(values) else None


def read_rows(path):
    """Names of a log's columns, and a dictionary of texts for each line."""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file)
            names, rows = list(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise ValueError(
            f"A log must be a CSV file. Received: {str(path)!r} ({error}). "
            "Move it elsewhere"
        ) from None
    for row in rows:  # What goes beyond the first line has no name.
        row.pop(None, None)
    return names, rows


def read_log(path, chance=None, marks=()):
    """Reads a log that `pretrain` or `keras.callbacks.CSVLogger` wrote.

    Args:
        path: Path of the file.
        chance: Loss of an encoder that knows nothing, to divide the loss by
            where the log has no column of that; or None.
        marks: As `History`.

    Returns:
        `History`; None if there is no such file, or no line in it.

    Raises:
        ValueError: If it is no CSV file.

    Example:

    ```python
    read_log("runs/a/log.csv").columns["loss"]
    ```
    """
    path = pathlib.Path(path)
    if not path.is_file():
        return None
    names, rows = read_rows(path)
    columns = {
        name: np.array([_number(row.get(name)) for row in rows])
        for name in names
        if name and name != "epoch"
    }
    columns = {k: x for k, x in columns.items() if np.isfinite(x).any()}
    if not columns:
        return None
    if chance and "loss" in columns:
        columns.setdefault("loss_over_chance", columns["loss"] / chance)
    epochs = np.array([_number(row.get("epoch")) for row in rows]) + 1
    if not np.isfinite(epochs).all():
        epochs = np.arange(1.0, len(rows) + 1)
    return History(epochs, columns, tuple(marks))


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):  # An empty cell, or a line cut short.
        return math.nan


def drawn(log):
    """The curves of a log as HTML: an SVG for each panel, and a table.

    Args:
        log: `History`.

    Returns:
        String. It names no address, and is coloured by the page.

    Example:

    >>> log = History(np.array([1.0, 2.0]), {"loss": np.array([5.0, 4.0])})
    >>> drawn(log).count("<svg")
    1
    """
    parts = []
    for title, names in _PANELS:
        if names == ("loss",) and "loss_over_chance" in log.columns:
            continue
        found = [name for name in names if name in log.columns]
        if found:
            parts.append(_panel(title, found, log))
    text = f'<div class="curves">{"".join(parts)}</div>'
    if log.marks:
        items = "".join(
            f"<li>After epoch {epoch:g}: {html.escape(words)}</li>"
            for epoch, words in log.marks
        )
        text += f'<ol class="marks">{items}</ol>'
    return text + _table(log)


def _panel(title, names, log):
    """One drawing: lines over epochs, the vertical marks, and a legend."""
    values = np.stack([log.columns[name] for name in names])
    low, high = np.nanmin(values), np.nanmax(values)
    ticks = sorted({low, high})
    if not low < high:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    first, last = min(0.0, log.epochs[0] - 1), max(log.epochs)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(epoch):
        return _LEFT + width * (epoch - first) / (last - first or 1)

    def down(value):
        return _TOP + height * (high - value) / (high - low)

    step = -(-len(log.epochs) // _MOST_POINTS)
    rows = np.union1d(np.arange(0, len(log.epochs), step), len(log.epochs) - 1)
    parts, legend = [], []
    for place, (name, line) in enumerate(zip(names, values, strict=True)):
        points = [
            f"{across(log.epochs[row]):.1f},{down(line[row]):.1f}"
            for row in rows
            if np.isfinite(line[row])
        ]
        parts += _line(place, points)
        x = _LEFT + place * width / 3
        y = _HEIGHT - 6
        legend += _line(place, [f"{x:.0f},{y}", f"{x + 22:.0f},{y}"])
        label = name.removesuffix("_accuracy")
        legend.append(_words(x + 26, _HEIGHT - 3, label))
    for number, (epoch, _) in enumerate(log.marks, 1):
        x = across(min(max(epoch, first), last))
        parts.append(f'<path class="mark" d="M{x:.1f} {_TOP}v{height}"/>')
        parts.append(_words(x - 4, _TOP + 9, number, "end"))
    axis = f"M{_LEFT} {_TOP}v{height}h{width}"
    bottom = _TOP + height + 12
    parts += [
        f'<path class="axis" d="{axis}"/>',
        *(_words(_LEFT - 4, down(x) + 4, _short(x), "end") for x in ticks),
        _words(_LEFT, bottom, f"{first:g}"),
        _words(_LEFT + width, bottom, f"epoch {last:g}", "end"),
        _words(_LEFT, 13, title, kind="title"),
    ]
    ends = ", ".join(f"{x} {_short(log.last(x))}" for x in names)
    label = html.escape(f"{title}, epochs {first:g} to {last:g}; last: {ends}")
    legend = legend if len(names) > 1 else []
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{label}">{"".join(parts + legend)}</svg>'
    )


def _line(place, points):
    """A line through points, or a dot for a single one."""
    if len(points) == 1:
        x, y = points[0].split(",")
        yield f'<circle class="dot c{place}" cx="{x}" cy="{y}" r="3"/>'
        return
    dashes = f' stroke-dasharray="{_DASHES[place]}"' if place else ""
    yield f'<path class="line c{place}"{dashes} d="M{" ".join(points)}"/>'


def _words(x, y, text, anchor="start", kind=""):
    kind = f' class="{kind}"' if kind else ""
    anchor = f' text-anchor="{anchor}"' if anchor != "start" else ""
    text = html.escape(str(text))
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}"{anchor}>{text}</text>'


def _short(value):
    """A number in so few signs that it has room beside an axis."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text if len(text) <= _SIGNS else f"{value:.1e}"


def _table(log):
    """The same as numbers, for those who cannot see lines."""
    size = len(log.epochs)
    rows = np.unique(
        np.linspace(0, size - 1, min(size, _MOST_ROWS)).astype(int)
    )
    head = "".join(
        f"<th>{html.escape(x)}</th>" for x in ("epoch", *log.columns)
    )
    body = "".join(
        f"<tr><td>{log.epochs[row]:g}</td>"
        + "".join(
            f"<td>{_short(x[row]) if np.isfinite(x[row]) else ''}</td>"
            for x in log.columns.values()
        )
        + "</tr>"
        for row in rows
    )
    which = "" if len(rows) == size else f", {len(rows)} of {size} epochs"
    return (
        f"<details><summary>The same as a table{which}</summary>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )
