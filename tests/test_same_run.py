import sys

import keras
import numpy as np

import keras_simclr as simclr
from benchmarks import results
from benchmarks.recipes import same_run


def test_with_group_norm_an_image_does_not_depend_on_its_batch():
    encoder = keras.models.clone_model(
        simclr.ResNet(10, width_multiplier=0.125, input_shape=(8, 8, 1)),
        clone_function=same_run.with_group_norm(),
    )
    images = np.random.default_rng(0).random((4, 8, 8, 1), "float32")
    together = encoder(images, training=True)
    alone = encoder(images[:1], training=True)
    np.testing.assert_allclose(together[:1], alone, rtol=1e-5, atol=1e-6)


def test_ways_are_compared_with_the_plain_one(monkeypatch, capsys, tmp_path):
    shares = dict(zip(same_run.WAYS, (0.85, 0.852, 0.849, 0.85), strict=True))
    runs = [
        {"way": way, "norm": "group", "epochs": same_run.EPOCHS, "linear": x}
        for way, x in shares.items()
    ]
    results.store(tmp_path / "same_run.json", runs)
    monkeypatch.setattr(sys, "argv", ["same_run.py", f"--results={tmp_path}"])
    same_run.main()
    assert capsys.readouterr().out.endswith(
        "| group norm | linear probe, % | less the plain run's |\n"
        "| --- | --- | --- |\n"
        "| plain | 85.00 | +0.00 |\n"
        "| micro-batches of 256 | 85.20 | +0.20 |\n"
        "| two workers | 84.90 | -0.10 |\n"
        "| resumed twice | 85.00 | +0.00 |\n"
    )
