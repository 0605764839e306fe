import os

import pytest
import tensorflow as tf

from keras_simclr import devices


def test_strategies_have_names(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name in ("one", "auto"):
        assert devices.make_strategy(name).num_replicas_in_sync == 1
    with pytest.raises(ValueError) as error:
        devices.make_strategy("mirorred")
    assert str(error.value) == (
        "`strategy` must be one of 'auto', 'mirrored', 'multi_worker', 'one', "
        "'tpu'. Received: strategy='mirorred'. Did you mean 'mirrored'?"
    )


@pytest.mark.parametrize(
    ("kinds", "variables", "name"),
    [
        ({"GPU": 2}, {}, "mirrored"),
        ({"GPU": 1}, {}, "one"),
        ({"TPU": 8}, {}, "tpu"),
        ({"GPU": 2}, {"TF_CONFIG": "{}"}, "multi_worker"),
    ],
)
def test_auto_takes_what_there_is(kinds, variables, name, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind: [kind] * kinds.get(kind, 0),
    )
    monkeypatch.setitem(devices._STRATEGIES, name, lambda: f"made {name}")
    assert devices.make_strategy("auto") == f"made {name}"


def test_precision_is_one_of_keras():
    assert devices.fastest_precision() in ("float32", "mixed_bfloat16")


def test_devices_are_described():
    text = devices.describe_devices(tf.distribute.get_strategy())
    assert text == "4 x CPU found; training on 1"


def test_only_cores_that_this_process_may_use_count():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert devices.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
