import argparse
import json

from absl import flags

import keras_simclr_cli as cli
from benchmarks.recipes import recipe


def test_search_changes_flags_of_pretrain():
    values = flags.FlagValues()
    cli.define_flags("pretrain", values)
    for change in recipe.CHANGES:
        for name, value in {**recipe.BASE, **change}.items():
            values[name].parse(str(value))
            assert values[name].value == value


def test_base_of_the_search_is_a_smaller_recipe():
    values = flags.FlagValues()
    cli.define_flags("pretrain", values)
    base = {name: values[name].default for name in recipe.BASE}
    assert base.pop("epochs") is None  # 8, for as many images.
    assert recipe.BASE["epochs"] < 8
    assert base.pop("width_multiplier") > recipe.BASE["width_multiplier"]
    assert base.items() <= recipe.BASE.items()


def test_what_is_stored_is_not_run_again(monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(
        recipe.subprocess, "run", lambda command, **_: trained.append(command)
    )
    monkeypatch.setattr(recipe, "probe_run", lambda *_: {"linear": 0.9})
    values = argparse.Namespace(data_dir=None, results=tmp_path)
    results = [
        recipe.run(changed, 3, values, ("train[:90%]", "test"))
        for changed in ({"strength": 0.5}, {}, {"strength": 0.5})
    ]
    assert results[0] == results[2] != results[1]
    assert len(trained) == 2
    # The defaults belong to a result: others are other results.
    assert results[1]["flags"]["strength"] == 1.0
    assert results[1]["flags"]["epochs"] == 8
    assert {"--strength=0.5", "--seed=3", "--split=train[:90%]"} < set(
        trained[0]
    )
    stored = json.loads((tmp_path / "recipe.json").read_text())
    assert stored == results[:2]
