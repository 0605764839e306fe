"""The page of a report: facts in, one HTML file out that needs nothing else."""

import base64
import dataclasses
import hashlib
import html
import pathlib

import numpy as np

from keras_simclr import curves, kinds
from keras_simclr._files import in_one_line

_MOST_CLASSES = 20  # Of a table of confusions.
_MAP = (
    "Map of the images. Arrow keys go from image to image, plus and minus "
    "zoom, 0 shows all, Enter goes to the row of the table."
)

_PIXELS = ' image-rendering="pixelated"'  # Of what is enlarged; not shrunk.


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image on the page.

    Attributes:
        name: Its name.
        label: Its class, or None.
        split: What it is of.
        place: Pair of floats in [-1, 1], on the map.
        likeness: Mean cosine similarity to its nearest neighbours, or None.
        thumbnail: `thumbnails.Thumbnail`.
        sound: `data:` address of what can be played, or None.
    """

    name: str
    label: str | None
    split: str
    place: tuple
    likeness: float | None
    thumbnail: object
    sound: str | None = None


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a page says. Images are numbers of places in `images`.

    Attributes:
        title: Of the page.
        verdict: Tuple of sentences.
        findings: Tuple of dictionaries: `text`, perhaps `rule` and `epoch`;
            None if nobody looked for some.
        log: `curves.History`, or None.
        views: Tuple of tuples of thumbnails: an image and its views.
        images: Tuple of `Shown`, all that are on the map.
        classes: Tuple of names of classes.
        neighbours: Dictionary from headings to tuples of `(image, others)`,
            with pairs of an image and a similarity in `others`.
        duplicates: Tuple of tuples of images.
        outliers: Tuple of images.
        first: Tuple of `(image, reason)`: what to label first.
        errors: Tuple of `(image, text)`: labels that are probably wrong.
        confusion: Array of counts, given classes by those found; or None.
        confused: Tuple of `(text, images)`.
        table: Tuple of rows of texts, the first the head; what `evaluate`
            found, or empty.
        settings: Dictionary from headings to dictionaries of texts.
        command: What repeats it.
        remarks: Dictionary from sections to what must be said there.
        kind: What the images are, a `kinds.Kind`.
    """

    title: str
    verdict: tuple
    findings: tuple | None
    log: curves.History | None
    views: tuple
    images: tuple
    classes: tuple
    neighbours: dict
    duplicates: tuple
    outliers: tuple
    first: tuple
    errors: tuple
    confusion: np.ndarray | None
    confused: tuple
    table: tuple
    settings: dict
    command: str
    remarks: dict
    kind: kinds.Kind = kinds.IMAGES


def page(facts):
    """The page as HTML: one text, without any address outside of it.

    Args:
        facts: `Facts`.

    Returns:
        String. Equal facts make equal texts.

    Example:

    ```python
    pathlib.Path("report.html").write_text(page(facts), "utf-8")
    ```
    """
    style, script = (
        pathlib.Path(__file__).with_name(f"report.{kind}").read_text("utf-8")
        for kind in ("css", "js")
    )
    # Names of files cannot become code: no other script than this one runs.
    policy = (
        "default-src 'none'; img-src data:; media-src data:; "
        f"style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'"
    )
    title = _text(facts.title)
    sections = "".join(
        f'<section id="{name}"><h2>{heading}</h2>{_remark(facts, name)}'
        f"{make(facts)}</section>\n"
        for name, heading, make in _SECTIONS
        if name in facts.remarks
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, '
        f'initial-scale=1">\n<title>{title}</title>\n<style>{style}</style>\n'
        f"</head>\n<body>\n{_pictures(facts)}\n<main>\n<h1>{title}</h1>\n"
        f"{sections}</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _digest(text):
    found = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(found).decode('ascii')}"


def _text(value):
    return html.escape(in_one_line(str(value)))


def _remark(facts, name):
    text = facts.remarks[name]
    return f"<p>{_text(text)}</p>" if text else ""


def _pictures(facts):
    """Each thumbnail once; the page refers to it wherever it is shown."""
    views = [x for row in facts.views for x in row]
    items = [(f"p{n}", x.thumbnail) for n, x in enumerate(facts.images)]
    items += [(f"v{n}", x) for n, x in enumerate(views)]
    images = "\n".join(
        f'<image id="{name}" width="{x.width}" height="{x.height}" '
        f'href="{x.address}"{_PIXELS * x.is_exact}/>'
        for name, x in items
    )
    return (
        '<svg class="store" aria-hidden="true" width="0" height="0"><defs>\n'
        f"{images}\n</defs></svg>"
    )


def _picture(name, thumbnail, alt=None):
    """A thumbnail; without `alt` its name stands beside it."""
    about = 'aria-hidden="true"'
    if alt is not None:
        about = f'role="img" aria-label="{_text(alt)}"'
    return (
        f'<svg class="picture" viewBox="0 0 {thumbnail.width} '
        f'{thumbnail.height}" {about}><use href="#{name}"/></svg>'
    )


def _figure(facts, number, *lines):
    """An image with its name below, which leads to its row in the table."""
    shown = facts.images[number]
    name = _text(shown.name)
    # There is room for few signs: folders say least of an image.
    short = _text(shown.name.rpartition("/")[2] or shown.name)
    lines = [line for line in (shown.label, *lines) if line is not None]
    below = "".join(f"<span>{_text(line)}</span>" for line in lines)
    return (
        f'<a class="figure" href="#i{number}" title="{name}">'
        f"{_picture(f'p{number}', shown.thumbnail)}"
        f'<span class="name">{short}</span>{below}</a>'
    )


def _verdict(facts):
    sentences = "".join(f"<li>{_text(x)}</li>" for x in facts.verdict)
    found = "<p>No findings.</p>"
    if facts.findings is None:
        found = "<p>None are on record.</p>"
    elif facts.findings:
        items = []
        for each in facts.findings:
            where = []
            if "epoch" in each:
                epoch = each["epoch"]
                where = [f"epoch {epoch}" if epoch else "before training"]
            where += [each["rule"]] if "rule" in each else []
            note = f" <small>({_text(', '.join(where))})</small>" * bool(where)
            items.append(f"<li>{_text(each.get('text', ''))}{note}</li>")
        found = f'<ul class="findings">{"".join(items)}</ul>'
    table = ""
    if facts.table:
        head, *rows = facts.table
        table = _table(head, rows, "What it is worth, accuracy in %")
    return (
        f'<ul class="verdict">{sentences}</ul><h3>Findings</h3>{found}{table}'
    )


def _table(head, rows, caption):
    """A table of texts whose first column heads the rows."""
    top = "".join(f'<th scope="col">{_text(x)}</th>' for x in head)
    body = "".join(
        f'<tr><th scope="row">{_text(first)}</th>'
        + "".join(f"<td>{_text(x)}</td>" for x in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="wide"><table><caption>{_text(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _curves(facts):
    if not facts.log:
        return ""
    what = facts.kind.plural.capitalize()
    text = curves.drawn(facts.log)
    return text.replace("Images a second", f"{what} a second")


def _views(facts):
    rows, number = [], 0
    for row in facts.views:
        parts = []
        for place, thumbnail in enumerate(row):
            what = f"view {place}" if place else facts.kind.example
            parts.append(
                f'<span class="figure">'
                f"{_picture(f'v{number}', thumbnail, what)}"
                f'<span aria-hidden="true">{what}</span></span>'
            )
            number += 1
        rows.append(f'<div class="row views">{"".join(parts)}</div>')
    return f'<div class="pairs">{"".join(rows)}</div>'


def _neighbours(facts):
    parts = []
    for heading, rows in facts.neighbours.items():
        parts.append(f'<h3>{_text(heading)}</h3><div class="two">')
        for image, others in rows:
            found = "".join(_figure(facts, x, f"{y:.3f}") for x, y in others)
            parts.append(
                f'<div class="row of-one"><span class="query">'
                f'{_figure(facts, image)}</span><span class="row">{found}'
                "</span></div>"
            )
        parts.append("</div>")
    return "".join(parts)


def _map(facts):
    options = "".join(
        f'<option value="{number}">{_text(name)}</option>'
        for number, name in enumerate(facts.classes)
    )
    choice = ""
    if facts.classes:
        choice = (
            '<label>Class <select id="of-class"><option value="">all'
            f"</option>{options}</select></label>"
        )
    return (
        '<div class="tools"><label>Search names <input id="search" '
        'type="search" autocomplete="off"></label>'
        f'{choice}<label><input id="with-pictures" type="checkbox" checked> '
        'Pictures</label><span><button id="closer" type="button" '
        'aria-label="Zoom in">+</button><button id="farther" type="button" '
        'aria-label="Zoom out">&minus;</button><button id="whole" '
        'type="button">Whole map</button></span></div>'
        '<div id="plane"><canvas id="map" tabindex="0" role="application" '
        f'aria-label="{facts.kind.said(_MAP)}"></canvas>'
        '<div id="tip" hidden></div></div>'
        '<p id="status" role="status"></p><ul id="legend"></ul>'
        "<noscript><p>The map needs JavaScript. The table has the same "
        "images.</p></noscript>"
        f"{_rows(facts)}"
    )


def _rows(facts):
    """All images of the map as a table, from which the map is drawn."""
    numbers = {name: number for number, name in enumerate(facts.classes)}
    rows = []
    for number, shown in enumerate(facts.images):
        x, y = shown.place
        kind = numbers.get(shown.label, "")
        likeness = "" if shown.likeness is None else f"{shown.likeness:.3f}"
        rows.append(
            f'<tr id="i{number}" tabindex="-1" data-x="{x:.3f}" '
            f'data-y="{y:.3f}" data-class="{kind}"><td>'
            f"{_picture(f'p{number}', shown.thumbnail)}"
            f"{_player(shown)}</td>"
            f'<th scope="row">{_text(shown.name)}</th>'
            f"<td>{_text(shown.label or '')}</td>"
            f"<td>{_text(shown.split)}</td><td>{likeness}</td></tr>"
        )
    heads = ("Picture", "Name", "Class", "Of", "Likeness to neighbours")
    top = "".join(f'<th scope="col">{x}</th>' for x in heads)
    return (
        '<details id="images"><summary>'
        f"{facts.kind.said('The images of the map as a table')} "
        f'({len(rows):,})</summary><div class="wide tall"><table><thead><tr>'
        f"{top}</tr></thead><tbody>\n{''.join(rows)}\n</tbody></table></div>"
        "</details>"
    )


def _player(shown):
    if not shown.sound:
        return ""
    return (
        f'<audio controls preload="none" src="{shown.sound}" '
        f'aria-label="{_text(shown.name)}"></audio>'
    )


def _duplicates(facts):
    groups = "".join(
        f'<div class="row">{"".join(_figure(facts, x) for x in group)}</div>'
        for group in facts.duplicates
    )
    return f'<div class="groups">{groups}</div>'


def _outliers(facts):
    figures = [
        _figure(facts, x, f"{facts.images[x].likeness:.3f}")
        for x in facts.outliers
    ]
    return f'<div class="row">{"".join(figures)}</div>'


def _first(facts):
    if not facts.first:
        return ""
    items = "".join(
        f"<li>{_figure(facts, image)}<span>{_text(reason)}</span></li>"
        for image, reason in facts.first
    )
    names = "\n".join(_text(facts.images[x].name) for x, _ in facts.first)
    return (
        f'<ol class="first">{items}</ol>'
        "<details open><summary>The names, to copy</summary>"
        '<textarea id="names" readonly rows="6" aria-label="Names of the '
        f'images to label first">{names}</textarea>'
        '<button id="copy" type="button">Copy</button></details>'
    )


def _errors(facts):
    figures = "".join(
        f"<li>{_figure(facts, image)}<span>{_text(text)}</span></li>"
        for image, text in facts.errors
    )
    return f'<ol class="first">{figures}</ol>' if figures else ""


def _confusion(facts):
    parts = []
    for text, images in facts.confused:
        found = "".join(_figure(facts, x) for x in images)
        parts.append(
            f'<div><h3>{_text(text)}</h3><div class="row">{found}</div></div>'
        )
    parts = [f'<div class="two">{"".join(parts)}</div>']
    if facts.confusion is not None and len(facts.classes) <= _MOST_CLASSES:
        rows = [
            (name, *counts)
            for name, counts in zip(
                facts.classes, facts.confusion.tolist(), strict=True
            )
        ]
        head = ("given \\ found", *facts.classes)
        parts.append(_table(head, rows, "Images by class"))
    return "".join(parts)


def _settings(facts):
    parts = [
        f"<pre><code>{_text(facts.command)}</code></pre>"
        if facts.command
        else ""
    ]
    for heading, values in facts.settings.items():
        items = "".join(
            f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in values.items()
        )
        parts.append(
            f"<details open><summary>{_text(heading)}</summary>"
            f"<dl>{items}</dl></details>"
        )
    return "".join(parts)


# In the order of the page; those that facts have no remark on are left out.
_SECTIONS = (
    ("verdict", "Verdict", _verdict),
    ("curves", "Training", _curves),
    ("views", "Views", _views),
    ("neighbours", "Nearest neighbours", _neighbours),
    ("map-of-images", "Map", _map),
    ("duplicates", "Near-duplicates", _duplicates),
    ("outliers", "Outliers", _outliers),
    ("first", "What to label first", _first),
    ("errors", "Labels that are probably wrong", _errors),
    ("confusion", "What is taken for what", _confusion),
    ("settings", "Settings", _settings),
)
