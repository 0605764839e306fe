import numpy as np
import pytest
from absl import flags

import keras_simclr_cli as cli
from benchmarks.recipes import factors, minutes


def test_factors_are_flags_of_pretrain_and_as_frequent_as_each_other():
    values = flags.FlagValues()
    cli.define_flags("pretrain", values)
    places = factors.design(24)
    changes = [factors.change_of(row) for row in places]
    for name, value in {k: v for x in changes for k, v in x.items()}.items():
        values[name].parse(str(value))
        assert values[name].value == value
    for column, levels in zip(places.T, factors.LEVELS.values(), strict=True):
        counts = np.bincount(column, minlength=len(levels))
        assert counts.max() - counts.min() <= 1
    per_step = {x["views"] * x["batch_size"] for x in changes}
    assert per_step == set(factors.LEVELS["views a step"])
    assert np.array_equal(places, factors.design(24))


def test_effects_are_found_that_were_put_in():
    places = factors.design(24)
    sizes = [len(levels) for levels in factors.LEVELS.values()]
    rng = np.random.default_rng(0)
    worth = [np.append(0.0, rng.normal(size=size - 1)) for size in sizes]
    scores = 70.0 + sum(
        amounts[column] for amounts, column in zip(worth, places.T, strict=True)
    )
    right = [70.0, *np.concatenate([amounts[1:] for amounts in worth])]
    found, half = factors.effects(places, scores)
    np.testing.assert_allclose(found, right, atol=1e-9)
    assert half.max() < 1e-6
    # 19 of 20 intervals hold what was put in; here of 40 x 16.
    held = []
    for _ in range(40):
        found, half = factors.effects(places, scores + rng.normal(size=24))
        held.append(abs(found - right) < half)
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)


def test_time_is_counted_in_steps_and_no_result_made_twice(
    monkeypatch, tmp_path
):
    made = []

    def trained(flags, seed, values, images):
        made.append(images)
        return None, round(images / flags["batch_size"])

    monkeypatch.setattr(minutes, "_trained", trained)
    monkeypatch.setattr(minutes, "_probed", lambda *_: {"linear": 0.5})
    monkeypatch.setattr(minutes, "_known_pace", lambda *_: 200.0)
    values = minutes.parser("").parse_args(
        ["--cifar10=x", f"--results={tmp_path}", "--minutes=2"]
    )
    change = {"batch_size": 64, "views": 4}
    assert not minutes.is_stored(change, 1, values)
    result = minutes.run(change, 1, values)
    assert minutes.is_stored(change, 1, values)
    assert minutes.run(change, 1, values) == result
    assert made == [2 * 60 * 200.0]
    assert result["steps"] == 2 * 60 * 200 / 64
    # The defaults belong to a result: others are other results.
    assert result["flags"]["temperature"] == 0.2
    values.test = True
    assert not minutes.is_stored(change, 1, values)
