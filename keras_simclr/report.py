"""What an encoder makes of images, on one page, and in tables beside it."""

import csv
import dataclasses
import functools

import numpy as np

from keras_simclr import (
    _checks,
    _files,
    accounts,
    cards,
    copies,
    kinds,
    labelled as labelled_images,
    pages,
    run_accounts,
    thumbnails,
)
from keras_simclr.audio import LogMel
from keras_simclr.augmentations import as_list
from keras_simclr.comparisons import choose, compare
from keras_simclr.csv_files import path_cell
from keras_simclr.features import kind_of_model, view_of
from keras_simclr.image_sets import ImageSet
from keras_simclr.maps import lay_out
from keras_simclr.model import SimCLRModel
from keras_simclr.pictures import picture_of, played

PAGE, TABLE, FIRST = "report.html", "embeddings.parquet", "label_first.csv"

_MOST_COMPARED = 20_000  # All with all: 4 s on one core, of 256 features.
_VIEWED, _VIEWS = 8, 4
_PICTURES = 1_250_000  # Signs of all thumbnails in the page: it has 2 MB.
_SOUNDS = 500_000  # Signs of all sounds in it.
_ROWS_AT_ONCE = 4_096


@dataclasses.dataclass(frozen=True)
class About:
    """What a page says beside what is measured.

    Attributes:
        title: Of the page; by default the name of the run or of the model.
        notes: Sentences to add to the verdict.
        command: What repeats it.
        split: What the images are of, for the table.
        data: Dictionary of what the images are, for the settings.
    """

    title: str = ""
    notes: tuple = ()
    command: str = ""
    split: str = "train"
    data: dict = dataclasses.field(default_factory=dict)


def write(
    output_dir,
    model,
    images,
    *,
    labelled=None,
    names=None,
    class_names=(),
    run_dir=None,
    about=None,
    seed=0,
    report=None,
    progress=None,
):
    """Writes a page of what an encoder makes of images, and two tables.

    - `report.html`: one file, which opens without a network: curves of the
      training, views, nearest neighbours, a map, near-duplicates, outliers,
      what to label first and, with labels, those that are probably wrong and
      what is taken for what.
    - `embeddings.parquet`: a row for each image: `path`, `x` and `y` on the map
      (null if it is not on it), `label`, `split`; the scores `likeness` (mean
      cosine to its nearest), `duplicates` (number of its group),
      `label_probability` (of its label, by the others) and `label_first` (its
      rank), null where there is none; and `vector`.
    - `label_first.csv`: which images to label first. A name that begins like
      a formula of a spreadsheet, with one of `=+-@`, is written as `./name`:
      the same file, and a text.

    Of more than 20,000 images as many are drawn, and compared with each other.
    The same arguments make the same files.

    Args:
        output_dir: Directory to write, new or empty. It is complete or absent.
        model: As of `simclr.extract_features`.
        images: As of `simclr.extract_features`, or `(images, labels)`. A
            dataset must give the same images in each pass.
        labelled: Labelled images from elsewhere, of the same kind, or None.
        names: Names of `images` by their `places`, or None: those of a dataset
            from files, or the places.
        class_names: As of `simclr.evaluate`.
        run_dir: Run directory whose model it is, for curves, findings and
            settings; or None.
        about: `About`, what else the page says; or None.
        seed: Integer that everything drawn is a function of.
        report: Function that is told, in words, what is being done; or None.
        progress: As of `simclr.extract_features`.

    Returns:
        `pages.Facts`: what the page says.

    Raises:
        FileExistsError: If `output_dir` is neither new nor empty.
        ValueError: If the encoder takes other images, there are none, or
            `labelled` has no labels.

    Example:

    ```python
    model = simclr.runs.load_model("runs/photos")
    dataset = simclr.dataset_from_directory(
        "photos", shuffle=False, drop_remainder=False
    )
    simclr.report.write("out", model, dataset, run_dir="runs/photos")
    ```
    """
    _checks.seed("seed", seed)
    _files.check_is_free(output_dir)
    about = about or About()
    run = run_accounts.RunAccount()
    if run_dir is not None:
        run = run_accounts.of_run(run_dir, model)
    kind = kind_of_model(model)
    say = functools.partial(kind.tell, report)
    options = {
        "split": about.split,
        "class_names": class_names,
        "kind": kind,
    }
    sets = [ImageSet("images", images, names=names, **options)]
    if labelled is not None:
        options |= {"split": "labelled", "needs_labels": True}
        sets.append(ImageSet("labelled", labelled, **options))
    for each in sets:
        say(f"Reading the images of `{each.name}`.")
        most = _MOST_COMPARED // len(sets)
        each.see(model, most, seed=seed, progress=progress)
    say("Comparing them.")
    found = compare(sets, seed)
    choice = choose(found, seed)
    plane = lay_out(found.features[found.rows[choice.shown]], seed)
    pictures, viewed, sounds = _seen_again(sets, found, choice, model)
    views = _views(model, viewed)
    drawn = thumbnails.encode(
        [*pictures, *(x for row in views for x in row)], _PICTURES
    )
    facts = accounts.facts_of(found, choice, plane, drawn[: len(pictures)])
    rest = iter(drawn[len(pictures) :])
    views = tuple(tuple(next(rest) for _ in row) for row in views)
    facts = _with_run(dataclasses.replace(facts, views=views), run, about)
    facts = _with_sounds(_with_model(facts, model, seed), sounds)
    with _files.staging(output_dir) as staged:
        (staged / PAGE).write_text(pages.page(facts), "utf-8", newline="\n")
        _write_vectors(staged / TABLE, found, choice, plane)
        _write_first(staged / FIRST, found)
    return facts


def _with_run(facts, run, about):
    """Facts with what a run tells, and who asks."""
    remarks = dict(facts.remarks)
    if run.log is not None:
        remarks["curves"] = ""
    elif run.name:
        remarks["curves"] = "This run has no log of its epochs."
    return dataclasses.replace(
        facts,
        title=about.title or run.name,
        verdict=(*run.verdict, *about.notes, *facts.verdict),
        findings=run.findings,
        log=run.log,
        table=run.table,
        command=about.command,
        settings={**run.settings, "This report": about.data},
        remarks=remarks,
    )


def _with_model(facts, model, seed):
    """Facts with what the model tells: its views, and which weights it has."""
    remarks, settings = dict(facts.remarks), dict(facts.settings)
    if facts.views:
        remarks["views"] = (
            "What the encoder sees of an image: views as the augmentation of "
            f"this model makes them, with its seed, {model.seed}. It learns "
            "what they have in common. If you would not say that they show "
            "the same, it learns too little; if they are nearly equal, too."
        )
    settings["This report"] = {
        **settings["This report"],
        "seed": seed,
        "weights (SHA-256)": copies.weights_digest(model),
        **cards.versions(),
    }
    kind = kind_of_model(model)
    return dataclasses.replace(
        facts,
        title=facts.title or model.name,
        verdict=tuple(map(kind.said, facts.verdict)),
        remarks={k: kind.said(text) for k, text in remarks.items()},
        settings=settings,
        neighbours={kind.said(k): x for k, x in facts.neighbours.items()},
        kind=kind,
    )


def _with_sounds(facts, sounds):
    """Facts with sounds to play, as many as there is room for.

    First those of which the page says more than that they are there.
    """
    pairs = [pair for rows in facts.neighbours.values() for pair in rows]
    told = [
        x for image, others in pairs for x in (image, *(y for y, _ in others))
    ]
    told += [*facts.outliers, *(x for x, _ in (*facts.first, *facts.errors))]
    told += [x for group in facts.duplicates for x in group]
    images, left = list(facts.images), _SOUNDS
    for place in dict.fromkeys([*told, *range(len(images))]):
        sound = sounds.get(place, "")
        if len(sound) <= left and sound:
            left -= len(sound)
            images[place] = dataclasses.replace(images[place], sound=sound)
    return dataclasses.replace(facts, images=tuple(images))


def _seen_again(sets, found, choice, model):
    """Pictures of all that is shown, and some images as they are; sounds.

    These are `data:` addresses, by the places of pictures.
    """
    kind, look = kind_of_model(model), view_of(model)
    layers = as_list(getattr(model, "augmentation", None))
    rate = next((x.rate for x in layers if isinstance(x, LogMel)), None)
    wanted = set(choice.shown.tolist())
    pictures, viewed, sounds, start = {}, [], {}, 0
    for each in sets:
        count = len(each.compared)
        ours = [x for x in wanted if start <= x < start + count]
        rows = {int(each.compared[x - start]): x for x in ours}
        drawn = set(choice.random.tolist()[:_VIEWED]) if start == 0 else set()
        for row, pixels in each.again(list(rows)):
            image = rows[row]
            view = pixels
            if kind is not kinds.IMAGES:
                view = look(pixels[None], None)[0]
            shown = thumbnails.shrunk(picture_of(view, kind))
            pictures[image] = shown
            if kind is kinds.AUDIO and rate:
                sounds[image] = played(pixels, rate)
            if image in drawn:
                viewed.append(np.array(pixels))
        start += count
    order = choice.shown.tolist()
    sounds = {n: sounds[x] for n, x in enumerate(order) if x in sounds}
    return [pictures[x] for x in order], viewed, sounds


def _views(model, images):
    """Pictures of images, each with its views of the first step of training."""
    if not isinstance(model, SimCLRModel) or not images:
        return []
    kind = model.kind
    sizes = np.array([x.shape[: kind.sized] for x in images], "int32")
    canvases = np.array(labelled_images.TightImages(images))
    has_one_size = (sizes == sizes[0]).all()
    sizes = None if has_one_size else sizes
    views = model.views(canvases, sizes, step=0)
    seen = images
    if kind is not kinds.IMAGES:
        seen = model.evaluation_view(canvases, sizes).numpy()
    columns = [seen, *(x.numpy() for x in views[:_VIEWS])]
    return [
        [thumbnails.shrunk(picture_of(x, kind)) for x in row]
        for row in zip(*columns, strict=True)
    ]


def _write_vectors(path, found, choice, plane):
    """The table of all images, some at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size, width = found.features.shape
    columns = {
        "x": _column(size, found.rows[choice.shown], plane[:, 0]),
        "y": _column(size, found.rows[choice.shown], plane[:, 1]),
        "likeness": _column(size, found.rows, found.likeness),
        "duplicates": _column(size, found.rows, found.group_of, 0),
        "label_probability": _column(size, *_probabilities(found)),
        "label_first": _column(size, *_ranks(found)),
    }
    texts = {"path": pa.string(), "label": pa.string(), "split": pa.string()}
    kinds = {
        **{name: pa.float32() for name in columns},
        "duplicates": pa.int32(),
        "label_first": pa.int32(),
    }
    order = ("path", "x", "y", "label", "split", *list(columns)[2:])
    schema = pa.schema(
        [
            *((name, (texts | kinds)[name]) for name in order),
            ("vector", pa.list_(pa.float32(), width)),
        ]
    )
    labels = [None if x is None else str(x) for x in found.labels]
    lists = {"path": found.names, "label": labels, "split": found.splits}
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, size, _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            arrays = {k: pa.array(x[rows], texts[k]) for k, x in lists.items()}
            for name, values in columns.items():
                part = values[rows]
                arrays[name] = pa.array(
                    part, kinds[name], mask=np.isnan(part), safe=False
                )
            arrays["vector"] = pa.FixedSizeListArray.from_arrays(
                pa.array(found.features[rows].ravel()), width
            )
            writer.write_table(
                pa.table([arrays[x.name] for x in schema], schema=schema)
            )


def _column(size, rows, values, nothing=None):
    """Values of some rows; of all others, and where there is nothing, NaN."""
    column = np.full(size, np.nan)
    column[rows] = values
    if nothing is not None:
        column[column == nothing] = np.nan
    return column


def _probabilities(found):
    """Rows of the labels that were tested, and the probability of each."""
    errors = found.errors
    if errors is None:
        return found.rows[:0], np.zeros(0)
    labels = found.labels[found.rows[found.labelled]]
    tested = np.flatnonzero(errors.is_tested)
    columns = {x: n for n, x in enumerate(errors.classes.tolist())}
    own = [errors.probabilities[x, columns[labels[x]]] for x in tested]
    return found.rows[found.labelled[tested]], np.array(own)


def _ranks(found):
    """Rows of what to label first, and the rank of each."""
    if found.centres is None:
        return found.rows[:0], np.zeros(0)
    places = found.centres.places
    return found.rows[places], np.arange(1, len(places) + 1)


def _write_first(path, found):
    head = ("rank", "path", "split", "reason")
    rows = []
    if found.centres is not None:
        for rank, (place, reason) in enumerate(
            zip(found.centres.places, accounts.reasons(found), strict=True), 1
        ):
            split = found.splits[found.rows[place]]
            rows.append((rank, path_cell(found.name(place)), split, reason))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
