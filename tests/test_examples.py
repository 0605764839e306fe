import io
import pathlib
import re
import runpy
import subprocess
import sys

import keras
import numpy as np
import pytest
from absl import app, flags
from helpers import standins

import keras_simclr as simclr

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def run(monkeypatch, name, *arguments):
    """Runs a program here: TensorFlow would take seconds to start.

    Returns a dictionary of what it defines.
    """
    others = set(flags.FLAGS)

    def parse_and_run(main):
        main(flags.FLAGS([name, *arguments]))

    monkeypatch.setattr(app, "run", parse_and_run)
    defined = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    flags.FLAGS.remove_flag_values(set(flags.FLAGS) - others)
    return defined


@pytest.mark.filterwarnings("ignore:5 of 1797 images do not fill a batch")
def test_examples_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    standins.use(monkeypatch)
    out = tmp_path / "encoder"
    run(
        monkeypatch,
        "pretrain_on_arrays.py",
        f"--output_dir={out}",
        "--epochs=1",
    )
    few = [f"--encoder_dir={out}", "--epochs=2"]
    # They do without; tests of the export load one in fresh processes.
    monkeypatch.setitem(sys.modules, "keras_simclr", None)
    run(monkeypatch, "classify_with_few_labels.py", *few)
    run(monkeypatch, "classify_with_saved_model.py", *few)
    text = capsys.readouterr().out
    accuracies = re.findall(r"accuracy with 100 labels: (0\.\d+)\n", text)
    assert len(accuracies) == 2
    # tf_keras needs a process without Keras 3.
    script = EXAMPLES / "fine_tune_with_hub.py"
    result = subprocess.run(
        [sys.executable, script, *few], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "accuracy with 100 labels: 0." in result.stdout


def write_texts(path):
    """Texts of two topics that share no word, below a licence."""
    rng = np.random.default_rng(0)
    lines = ["  1 A licence | with a bar\n"]
    for place in range(60):
        letter = "ab"[place % 2]
        words = " ".join(f"{letter}{x}" for x in rng.choice(90, 12))
        lines.append(
            f"{place:08} {3 + place % 2:02} n 01 w 0 000 | {words}  \n"
        )
    path.write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def text_example(tmp_path_factory):
    """What the example of texts defines, and what it prints."""
    path = tmp_path_factory.mktemp("texts") / "data.noun"
    write_texts(path)
    given = [f"--texts={path}", "--epochs=2", "--test_size=20", "--draws=2"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", printed)
        defined = run(patch, "text.py", *given)
    return defined, printed.getvalue()


def test_texts_are_compared_with_words_that_are_counted(text_example):
    _, text = text_example
    number = r"([01]\.\d{3})"
    for name in ("SimCLR", "TF-IDF", "LSA"):
        rows = re.findall(rf"{name} +{number} \({number} to {number}\)", text)
        assert len(rows) == 3
        for accuracy, low, high in np.float64(rows):
            assert low <= accuracy <= high
        # No topic has words of the other.
        assert float(rows[-1][0]) > 0.9
    assert len(re.findall(r"lead [+-]0\.\d{3} \(", text)) == 6
    assert "all labels per topic" in text


def test_layers_of_texts_change_them_as_they_say(text_example):
    defined, _ = text_example
    rng = np.random.default_rng(0)
    lengths = np.arange(40) % 12 + 1
    tokens = rng.permuted(np.tile(np.arange(2, 14), (40, 1)), axis=1)
    tokens = np.where(np.arange(12) < lengths[:, None], tokens, 0)
    for name in ("TokenCrop", "TokenMask", "TokenDeletion"):
        layer = defined[name]()
        simclr.testing.assert_at_rest(layer, keras.ops.array(tokens))
        views = np.asarray(layer(tokens, seed=(0, 1)))
        part = np.asarray(layer(tokens[5:9], seed=(0, 1), part=(5, 40)))
        np.testing.assert_array_equal(part, views[5:9])
        assert (views != tokens).any()
        for row, view in zip(tokens.tolist(), views.tolist(), strict=True):
            row, left = [x for x in row if x], [x for x in view if x]
            assert view == left + [0] * (12 - len(left))
            if name == "TokenMask":
                pairs = zip(row, left, strict=True)
                assert all(new in (old, 1) for old, new in pairs)
                continue
            places = [row.index(x) for x in left]
            assert places
            assert places == sorted(places)
            if name == "TokenCrop":
                assert places == [*range(places[0], places[-1] + 1)]
                assert 2 * len(left) >= len(row)
