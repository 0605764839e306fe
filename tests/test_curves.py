import html.parser
import re

import numpy as np
import pytest

from keras_simclr import curves

LOG = """\
epoch,contrastive_accuracy,knn_accuracy,linear_accuracy,loss,odd<name
0,0.1,0.5,,6.0,1
1,0.2,0.5,0.75,5.0,2
2,0.3,0.6,nan,4.5,3
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    return path


def test_log_is_read_by_columns(path):
    log = curves.read_log(path, chance=8.0)
    assert log.epochs.tolist() == [1, 2, 3]
    assert log.columns["loss_over_chance"].tolist() == [0.75, 0.625, 0.5625]
    np.testing.assert_array_equal(
        log.columns["linear_accuracy"], [np.nan, 0.75, np.nan]
    )
    assert log.last("linear_accuracy") == 0.75
    assert log.last("absent") is None


@pytest.mark.parametrize("text", [None, "", "epoch,loss\n", "epoch\n0\n"])
def test_nothing_logged_is_no_log(text, tmp_path):
    path = tmp_path / "log.csv"
    if text is not None:
        path.write_text(text)
    assert curves.read_log(path) is None


def test_line_that_was_cut_short_is_no_fault(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,loss\n0,5.0\n1,4")
    path.write_text("epoch,loss,x\n0,5.0,1\n1,")
    log = curves.read_log(path)
    assert log.epochs.tolist() == [1, 2]
    assert log.last("loss") == 5.0
    curves.drawn(log)


class Shapes(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.lines, self.labels, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "svg":
            self.labels.append(attributes["aria-label"])
        if "line" in attributes.get("class", "").split():
            points = attributes["d"].removeprefix("M").split(" ")
            self.lines.append([tuple(map(float, x.split(","))) for x in points])


def test_lines_go_where_the_numbers_do(path):
    log = curves.read_log(path)
    text = curves.drawn(log)
    shapes = Shapes()
    shapes.feed(text)
    assert [x.split(",")[0] for x in shapes.labels] == [
        "Loss",
        "Contrastive accuracy",
        "Accuracy of probes",
    ]
    (x_1, y_1), (x_2, y_2), (x_3, y_3) = shapes.lines[0]
    assert x_2 - x_1 == pytest.approx(x_3 - x_2, abs=0.2)
    assert (y_2 - y_1) / (y_3 - y_2) == pytest.approx(2, abs=0.05)  # 1 to 0.5
    assert "last: knn_accuracy 0.6, linear_accuracy 0.75" in shapes.labels[2]
    # Two lines differ without colour; the table has all columns, as text.
    assert text.count("stroke-dasharray") == 1 + 0
    assert "<th>odd&lt;name</th>" in text
    assert "<svg" in text
    assert "http" not in text


def test_marks_are_numbered_and_explained(path):
    log = curves.read_log(path, marks=[(1, "stopped <here>")])
    text = curves.drawn(log)
    assert text.count('class="mark"') == 3
    assert "<li>After epoch 1: stopped &lt;here&gt;</li>" in text


def test_many_epochs_are_drawn_in_few_points():
    epochs = np.arange(1.0, 5001)
    text = curves.drawn(curves.History(epochs, {"loss": 5000 - epochs}))
    assert len(text) < 20_000
    assert "50 of 5000 epochs" in text


@pytest.mark.parametrize("value", [4.74e-4, -4.74e-4, 1.5e-9, 1e6, 1234567])
def test_numbers_have_room_beside_the_axis(value):
    log = curves.History(np.array([1.0, 2.0]), {"loss": value * np.arange(2)})
    texts = re.findall(r'text-anchor="end">([^<]*)<', curves.drawn(log))
    assert max(map(len, texts)) <= 8
    numbers = [float(x.replace(",", "")) for x in texts if "epoch" not in x]
    assert pytest.approx(value, rel=0.05) in numbers


def test_constant_values_have_a_height_and_one_number():
    log = curves.History(np.array([1.0, 2.0]), {"loss": np.array([3.0, 3.0])})
    text = curves.drawn(log)
    assert "nan" not in text
    assert re.findall(r'text-anchor="end">([\d.]+)<', text) == ["3"]
