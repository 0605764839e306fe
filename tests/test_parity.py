import numpy as np
import pytest
import tensorflow as tf

from benchmarks.parity import parity

PADDINGS = ("CONSTANT", "REFLECT", "SYMMETRIC")


@pytest.fixture
def _eager():
    """What runs is not compiled, which takes longer."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def wrong_answers(asked):
    """Zeros, where no right answer is 0."""
    count, *shape = asked["images"].shape
    crops = np.zeros((count, *asked["size"], 3))
    images = np.zeros((count, *shape))
    return {
        **{padding: np.stack(3 * [images]) for padding in PADDINGS},
        "white": 1.0,
        "turned": np.stack(4 * [images]),
        "cropped": crops,
        "at_rest": crops,
        **dict.fromkeys(("cut_out", "jittered", "gray"), images),
        **dict.fromkeys(("nt_xent", "gradient", "n_pairs", "semi_hard"), 0.0),
        "versions": "nothing",
    }


@pytest.mark.usefixtures("_eager")
def test_every_row_that_should_be_equal_can_fail(monkeypatch, capsys):
    monkeypatch.setattr(parity, "ask", lambda _, asked: wrong_answers(asked))
    failed = parity.main("python")
    _, _, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert len(rows) == failed + 3
    verdicts = [row.split(" | ")[-1] for row in rows]
    assert verdicts.count("NOT EQUAL |") == failed
    assert sum(x.startswith("differs by design: ") for x in verdicts) == 3


def test_row_within_its_tolerance_is_equal():
    verdicts = [
        parity.Row("blur", "theirs", difference, 1e-5).verdict
        for difference in (0.0, 1e-5, 2e-5, np.nan)
    ]
    assert verdicts == ["equal", "equal", "NOT EQUAL", "NOT EQUAL"]
