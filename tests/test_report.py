import csv
import json
import pathlib
import re

import keras
import numpy as np
import pyarrow.parquet
import pytest
from helpers import pictures
from helpers.html_pages import Parsed

import keras_simclr as simclr
from keras_simclr import pages, report, run_accounts, runs

pytestmark = pytest.mark.usefixtures("eagerly")

RNG = np.random.default_rng(0)
# Names that would be markup, code, formulas, or break a line.
NAMES = [
    "<img src=x onerror=alert(1)>.png",
    "</script><script>alert(2)</script>.png",
    "\" onmouseover='alert(3)' \".png",
    "two\nlines.png",
    "=1+1.png",
    "-x.png",
    "@sum.png",
    "+1.png",
    "&amp;amp.png",
    "right\u202eto left.png",
    "no text \udcff\udcfe.png",
    "http://example.org/a.png",
]


def blots(count, seed=0):
    """Images that differ, in two kinds: dark and light ones."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 100, (count, 8, 8, 3), "uint8")
    kinds = np.arange(count) % 2
    return images + (155 * kinds[:, None, None, None]).astype("uint8"), kinds


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    encoder = simclr.ResNet(
        10, width_multiplier=0.25, stem="cifar", input_shape=(8, 8, 3)
    )
    model = simclr.SimCLRModel(encoder)
    model.compile()
    return model


@pytest.fixture(scope="module")
def run_dir(model, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "a run"
    dataset = simclr.dataset_from_arrays(blots(16)[0], batch_size=8)
    flags = "--batch_size=8\n--data=/home/me/secret/blots.npz\n--epochs=2\n"
    runs.pretrain(model, dataset, run_dir, epochs=2, flags=flags)
    finding = {
        "rule": "flat <loss>",
        "epoch": 2,
        "text": "The loss does not fall & more.",
        "values": {"loss": 5.0},
    }
    runs.update_summary(run_dir, {"findings": [finding]})
    return run_dir


@pytest.fixture(scope="module")
def written(model, run_dir, tmp_path_factory):
    """A report of images with all kinds of names, two of them equal."""
    images, kinds = blots(40)
    images[7] = images[4]
    labels = kinds.copy()
    labels[30:] = -1
    names = [*NAMES, *(f"{x}.png" for x in range(12, 40))]
    output_dir = tmp_path_factory.mktemp("written") / "out"
    facts = report.write(
        output_dir,
        model,
        (images, labels),
        names=names,
        class_names=("dark", "<light>"),
        run_dir=run_dir,
    )
    return output_dir, facts, images


def page_of(output_dir):
    return (output_dir / report.PAGE).read_text("utf-8")


def test_page_names_no_address_and_runs_no_other_script(written):
    text = page_of(written[0])
    page = Parsed(text)
    for name in ("src", "href", "action", "data", "poster", "srcset"):
        for value in page.attributes(name):
            assert value.startswith(("data:image/webp;base64,", "#")), value
    for name in page.attributes("href"):
        if name.startswith("#"):
            assert name[1:] in page.attributes("id")
    assert len(set(page.attributes("id"))) == len(page.attributes("id"))
    assert not [x for _, tag in page.tags for x in tag if x.startswith("on")]
    kinds = [tag for tag, _ in page.tags]
    assert kinds.count("script") == kinds.count("style") == 1
    assert not {"link", "iframe", "object", "embed", "base"} & {*kinds}
    script = page.text("script")
    assert script == pathlib.Path(pages.__file__).with_name(
        "report.js"
    ).read_text("utf-8")
    assert "http" not in script + page.text("style")
    (policy,) = page.attributes("content")[:1]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.fault(76)
def test_names_are_text(written):
    output_dir, facts, _ = written
    page = Parsed(page_of(output_dir))
    shown = {x.name for x in facts.images}
    assert {NAMES[0], NAMES[1], NAMES[2]} <= shown
    cells = page.text("th")
    for name in (*NAMES[:3], *NAMES[4:9], NAMES[11]):
        assert name in cells
    assert "two\\nlines.png" in cells
    assert "right\\u202eto left.png" in cells
    assert "no text \\xff\\xfe.png" in cells
    assert "<light>" in page.text("option")


def test_figures_are_named_by_file_and_pixels_are_seen(model, tmp_path):
    images = RNG.integers(0, 256, (12, 8, 8, 3), "uint8")
    names = [f"folder/of/{x}.png" for x in range(12)]
    report.write(tmp_path / "out", model, images, names=names)
    text = page_of(tmp_path / "out")
    assert 'title="folder/of/3.png"' in text
    assert '<span class="name">3.png</span>' in text
    stored = re.findall("<image [^>]*>", text)
    assert all('image-rendering="pixelated"' in x for x in stored)


def test_no_private_place_goes_out(written):
    text = page_of(written[0])
    assert "secret" not in text
    assert "blots.npz" in text
    assert str(written[0].parent) not in text


def test_page_has_its_sections_in_order(written):
    page = Parsed(page_of(written[0]))
    found = [x["id"] for tag, x in page.tags if tag == "section"]
    assert found == [
        "verdict",
        "curves",
        "views",
        "neighbours",
        "map-of-images",
        "duplicates",
        "outliers",
        "first",
        "errors",
        "confusion",
        "settings",
    ]
    text = page.text("main")
    assert "The run is finished after 2 epochs" in text
    assert "of that of chance" in text
    assert "The loss does not fall & more. (epoch 2, flat <loss>)" in text
    assert "40 images: 1 group of near-duplicates" in text
    pictures = [x for tag, x in page.tags if x.get("class") == "picture"]
    assert all("aria-hidden" in x or x.get("aria-label") for x in pictures)


def test_facts_are_those_of_the_images(written, model):
    _, facts, images = written
    features = simclr.extract_features(model, images).astype("float64")
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    cosines = features @ features.T
    np.fill_diagonal(cosines, -np.inf)
    assert len(facts.images) == 40  # In the order of the images.
    for image, others in facts.neighbours["Of images drawn at random"]:
        expected = np.sort(cosines[image])[::-1][:6]
        np.testing.assert_allclose([x for _, x in others], expected, atol=1e-5)
        for other, likeness in others:
            assert cosines[image, other] == pytest.approx(likeness, abs=1e-5)
    likeness = np.sort(cosines)[:, ::-1][:, :6].mean(axis=1)
    np.testing.assert_allclose(
        [x.likeness for x in facts.images], likeness, atol=1e-5
    )
    lonely = likeness[list(facts.outliers)]
    np.testing.assert_allclose(lonely, np.sort(likeness)[:24], atol=1e-5)
    assert facts.duplicates == ((4, 7),)
    assert {image for image, _ in facts.first} == {*range(30, 40)}
    assert sum(map(sum, facts.confusion.tolist())) == 30
    assert [len(row) for row in facts.views] == [3] * 8


def test_table_has_a_row_for_each_image(written, model):
    output_dir, facts, images = written
    table = pyarrow.parquet.read_table(output_dir / report.TABLE)
    assert table.column_names == [
        "path",
        "x",
        "y",
        "label",
        "split",
        "likeness",
        "duplicates",
        "label_probability",
        "label_first",
        "vector",
    ]
    rows = table.to_pylist()
    assert len(rows) == 40
    assert rows[10]["path"] == "no text \\xff\\xfe.png"
    assert rows[3]["path"] == "two\nlines.png"
    assert [x["label"] for x in rows[29:31]] == ["<light>", None]
    assert rows[4]["duplicates"] == rows[7]["duplicates"] == 1
    assert rows[5]["duplicates"] is None
    assert rows[30]["label_probability"] is None
    assert 0 <= rows[0]["label_probability"] <= 1
    ranks = [x["label_first"] for x in rows]
    assert ranks[:30] == [None] * 30
    assert sorted(ranks[30:]) == [*range(1, 11)]
    assert (rows[5]["x"], rows[5]["y"]) == facts.images[5].place
    vectors = np.array([x["vector"] for x in rows], "float32")
    expected = simclr.extract_features(model, images)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_list_says_what_to_label_first_and_why(written):
    output_dir, facts, _ = written
    with (output_dir / report.FIRST).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(x["rank"]) for x in rows] == [*range(1, 11)]
    names = [facts.images[image].name for image, _ in facts.first]
    assert [x["path"] for x in rows] == names
    for row in rows:
        assert re.match(
            r"Stands for (\d+ images|itself alone)\. Unlike all before it: "
            r"likeness -?\d\.\d\d to (labelled )?.+png.$",
            row["reason"],
        )
    page = Parsed(page_of(output_dir))
    assert page.text("textarea").split("\n") == names


@pytest.mark.fault(76)
def test_cells_are_no_formulas(model, tmp_path):
    images, _ = blots(len(NAMES))
    report.write(tmp_path / "out", model, images, names=NAMES)
    text = (tmp_path / "out" / report.FIRST).read_bytes().decode()
    with (tmp_path / "out" / report.FIRST).open(newline="") as file:
        cells = [x for row in csv.reader(file) for x in row]
    assert not [x for x in cells if x.startswith(("=", "+", "-", "@"))]
    for name in NAMES[4:8]:
        assert f",./{name}," in text


def test_same_images_make_the_same_bytes(written, model, run_dir, tmp_path):
    output_dir, _, images = written
    names = [*NAMES, *(f"{x}.png" for x in range(12, 40))]
    labels = np.arange(40) % 2
    labels[30:] = -1
    report.write(
        tmp_path / "out",
        runs.load_model(run_dir),
        (images, labels),
        names=names,
        class_names=("dark", "<light>"),
        run_dir=run_dir,
    )
    for name in (report.PAGE, report.TABLE, report.FIRST):
        one, other = (x / name for x in (output_dir, tmp_path / "out"))
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_are_enough(model, count, tmp_path):
    facts = report.write(tmp_path / "out", model, blots(count)[0])
    Parsed(page_of(tmp_path / "out"))
    assert len(facts.images) == count
    assert len(facts.first) == count
    assert "Nearest to the middle of all" in facts.first[0][1]
    assert bool(facts.neighbours) == (count > 1)
    assert facts.log is None
    assert "curves" not in facts.remarks


def test_one_class_teaches_nothing(model, tmp_path):
    images, _ = blots(6)
    facts = report.write(tmp_path / "out", model, (images, ["a"] * 6))
    assert "it takes two classes" in facts.remarks["errors"]
    assert facts.remarks["first"] == "All images have a label."
    assert facts.confusion is None
    text = (tmp_path / "out" / report.FIRST).read_text()
    assert text.splitlines() == ["rank,path,split,reason"]


def test_labels_from_elsewhere_are_learnt_from(model, tmp_path):
    images, _ = blots(20)
    others, other_kinds = blots(30, seed=1)
    facts = report.write(
        tmp_path / "out", model, images, labelled=(others, other_kinds)
    )
    assert [x.split for x in facts.images] == ["train"] * 20 + ["labelled"] * 30
    assert {image for image, _ in facts.first} == {*range(20)}
    assert facts.confusion.sum() == 30
    table = pyarrow.parquet.read_table(tmp_path / "out" / report.TABLE)
    assert table["label"].to_pylist()[:21] == [None] * 20 + ["0"]


@pytest.mark.parametrize(
    ("images", "labelled", "message"),
    [
        (blots(4)[0], blots(4)[0], "`labelled` must hold labels"),
        (blots(4)[0][..., :1], None, "takes images with 3 channels"),
        (blots(4)[0][:0], None, "at least one"),
        (
            (blots(4)[0], ["a", "b", "c", "d"]),
            (blots(4)[0], [1, 2, 3, 4]),
            "both have names of classes",
        ),
    ],
)
def test_what_cannot_be_reported_is_refused(
    model, images, labelled, message, tmp_path
):
    with pytest.raises(ValueError) as error:
        report.write(tmp_path / "out", model, images, labelled=labelled)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        report.write(tmp_path, model, blots(4)[0])
    assert [x.name for x in tmp_path.iterdir()] == ["mine.txt"]


def test_many_images_are_sampled_and_that_is_said(model, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_MOST_COMPARED", 12)
    facts = report.write(tmp_path / "out", model, blots(50)[0])
    assert (
        "50 images, of which 12, drawn at random, are compared"
        in (facts.verdict[0])
    )
    assert "12 are compared" in facts.remarks["neighbours"]
    assert len(facts.images) == 12
    table = pyarrow.parquet.read_table(tmp_path / "out" / report.TABLE)
    assert len(table) == 50
    assert table["x"].null_count == 38
    assert table["likeness"].null_count == 38
    assert table["vector"].null_count == 0


def test_page_of_a_thousand_pictures_is_small(model, tmp_path):
    """Of noise, which compresses worst, and with long names."""
    images = RNG.integers(0, 256, (1100, 40, 40, 3), "uint8")
    names = [f"{'long' * 10}/{x:05}.jpeg" for x in range(1100)]
    report.write(
        tmp_path / "out", model, (images, np.arange(1100) % 10), names=names
    )
    size = (tmp_path / "out" / report.PAGE).stat().st_size
    assert size < 2_000_000


def test_encoder_that_is_no_simclr_model_has_no_views(tmp_path, model):
    facts = report.write(tmp_path / "out", model.encoder, blots(5)[0])
    assert facts.views == ()
    assert "views" not in facts.remarks


def summary_with(run_dir, tmp_path, **entries):
    copy = tmp_path / "run"
    copy.mkdir()
    for path in run_dir.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps(summary | entries))
    return copy


@pytest.mark.parametrize(
    ("entries", "words", "marks"),
    [
        ({}, "The run is finished after 2 epochs", []),
        (
            {"finished": False, "epochs_trained": 1},
            "The run is interrupted after 1 epoch,",
            [(1, "stopped before the end")],
        ),
        (
            {"epochs_trained": 0, "steps_trained": 3},
            "No epoch of this run is finished",
            [],
        ),
        (
            {"resumed": [1], "more_epochs": [4]},
            "The run is finished",
            [
                (1, "training was gone on with, after a stop"),
                (2, "the run was finished; 4 epochs were added"),
            ],
        ),
        (
            {"earlier_data": [{"epochs_trained": 1}, {}]},
            "The run is finished",
            [(1, "other images from here on")],
        ),
        ({"findings": "none"}, "The run is finished", []),
    ],
)
def test_run_tells_how_it_went(run_dir, model, entries, words, marks, tmp_path):
    copy = summary_with(run_dir, tmp_path, **entries)
    account = run_accounts.of_run(copy, model)
    assert account.verdict[0].startswith(words)
    assert list(account.log.marks) == marks


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        ([], "<p>No findings.</p>"),
        (None, "<p>None are on record.</p>"),
        ([3], "<p>No findings.</p>"),
        ([{"text": "Slow.", "epoch": 0}], "Slow. <small>(before training)<"),
    ],
)
def test_no_findings_and_none_looked_for_are_two_things(
    run_dir, model, findings, words, tmp_path
):
    copy = summary_with(run_dir, tmp_path, findings=findings)
    report.write(tmp_path / "out", model, blots(5)[0], run_dir=copy)
    assert words in page_of(tmp_path / "out")


def test_run_without_a_log_says_so(run_dir, model, tmp_path):
    copy = summary_with(run_dir, tmp_path)
    (copy / "log.csv").unlink()
    facts = report.write(tmp_path / "out", model, blots(5)[0], run_dir=copy)
    assert facts.remarks["curves"] == "This run has no log of its epochs."


def test_table_of_an_evaluation_is_shown(run_dir, model, tmp_path):
    images, kinds = blots(30)
    result = simclr.evaluate(
        model, (images, kinds), probes=("knn",), labels=("all",), draws=2
    )
    copy = summary_with(run_dir, tmp_path, **result.summary)
    account = run_accounts.of_run(copy, model)
    head, *rows = account.table
    assert head == ("features, probe", "all")
    assert [name for name, _ in rows] == [
        "pixels, knn",
        "untrained, knn",
        "simclr, knn",
    ]
    assert account.verdict[-1] == f"As evaluated: {result.verdict}"
    summary = {**result.summary, "evaluation": {"weights": "others"}}
    (tmp_path / "b").mkdir()
    copy = summary_with(run_dir, tmp_path / "b", **summary)
    account = run_accounts.of_run(copy, model)
    assert account.table == ()
    assert "evaluate it anew" in account.verdict[-1]


def test_changed_images_are_noticed(tmp_path):
    folder = pictures.write(
        tmp_path / "photos",
        {
            f"{n}.png": pictures.encoded(pictures.picture(n), "PNG")
            for n in range(3)
        },
    )
    data = simclr.recipe.Data(data=str(folder))
    source, _ = data.open_in_order(8)
    record = runs._data_of_record(source, data, 2)
    (tmp_path / "run").mkdir()
    runs.update_summary(tmp_path / "run", {"data": record})
    assert run_accounts.changes(tmp_path / "run", source, data) == []
    assert run_accounts.changes(None, source, data) == []
    (folder / "1.png").write_bytes(pictures.encoded(pictures.picture(9), "PNG"))
    source, _ = data.open_in_order(8)
    (sentence,) = run_accounts.changes(tmp_path / "run", source, data)
    assert sentence.endswith("or they have changed since.")
    (folder / "2.png").unlink()
    source, _ = data.open_in_order(8)
    (sentence,) = run_accounts.changes(tmp_path / "run", source, data)
    assert sentence.endswith(": 3 files then, 2 files now.")
