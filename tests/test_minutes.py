import numpy as np
import pytest
from absl import flags

import keras_simclr_cli as cli
from benchmarks.recipes import equal_minutes, factors, minutes
from benchmarks.speed import images


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

    monkeypatch.setattr(minutes, "trained", trained)
    monkeypatch.setattr(minutes, "probed", lambda *_: {"linear": 0.5})
    monkeypatch.setattr(minutes, "known_pace", lambda *_: 200.0)
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


@pytest.mark.parametrize(("count", "steps", "parts"), [(10, 7, 3), (100, 5, 5)])
def test_parts_of_a_training_are_whole_batches_of_whole_epochs(
    count, steps, parts
):
    found = list(images.parts_of_training(count, 4, steps, parts, seed=0))
    assert len(found) == parts
    assert all(len(part) % 4 == 0 for part in found)
    places = np.concatenate(found)
    assert len(places) == 4 * steps
    for start in range(0, len(places), count):
        epoch = places[start : start + count]
        assert len(set(epoch)) == len(epoch)
    again = images.parts_of_training(count, 4, steps, 1, seed=0)
    np.testing.assert_array_equal(next(again), places)


def test_leads_are_those_of_the_same_seed(tmp_path):
    values = equal_minutes.minutes.parser("").parse_args(
        ["--cifar10=x", f"--results={tmp_path}", "--minutes=2"]
    )
    values.seeds = 2
    results = []
    for seed, (ours, theirs) in enumerate([(0.5, 0.4), (0.7, 0.66)]):
        for name in ("keras_simclr", *equal_minutes._RECIPES):
            share = ours if name == "keras_simclr" else theirs
            shares = dict.fromkeys(("linear", "few_labels", "knn"), share)
            results.append(
                {
                    **equal_minutes._key(seed, values),
                    "contender": name,
                    "images_per_second": 100.0,
                    **shares,
                }
            )
    equal_minutes.store(tmp_path / "equal_minutes.json", results)
    lines = equal_minutes._table(values).splitlines()
    assert lines[2].split(" | ")[2:] == ["60.0", "60.0", "60.0 |"]
    cell = "53.0 (+4.0 to +10.0)"
    assert lines[3].split(" | ")[2:] == [cell, cell, f"{cell} |"]


def test_gains_are_those_of_the_same_seed():
    changes = [{"views": 2}, {"views": 4}]
    results = [
        [dict.fromkeys(minutes.PROBES, share) for share in seed]
        for seed in ((0.5, 0.54), (0.7, 0.76))
    ]
    text = minutes.table(changes, results)
    first, second = text.splitlines()[2:]
    assert first.endswith(" | 60.0 | 60.0 | 60.0 |")
    # Gains of 4 and 6: 5, with 12.706 x 1.
    assert second.endswith(3 * " | 65.0 (+5.0 ± 12.7)" + " |")
    alone = minutes.table(changes, results[1:])
    assert alone.splitlines()[3].endswith(3 * " | 76.0 (+6.0 ± nan)" + " |")
