"""Wider encoders beside the supervised network of the smallest width.

python benchmarks/claims/width.py [--quick] [--seeds=N] [--data_dir=DIR]
"""

import itertools

import common

_BASE = 0.125
_TIMES = (1, 2, 4)
_SUPERVISED_EPOCHS = 10
_TOLERANCE = 0.01


def configurations(seed, _):
    """The base width supervised, and each width pretrained."""
    supervised = {"training": "supervised", "epochs": _SUPERVISED_EPOCHS}
    yield {**common.RECIPE, **supervised, "width": _BASE, "seed": seed}
    for times in _TIMES:
        yield {
            **common.RECIPE,
            "training": "simclr",
            "width": times * _BASE,
            "seed": seed,
        }


def work(config, data):
    """Trains, with labels or without."""
    if config["training"] == "simclr":
        return common.train_and_probe(config, data)
    return {"accuracy": _supervised(config, data)}


def _supervised(config, data):
    """Test accuracy of the network trained on the labels of the same images.

    With crops and flips, as supervised networks are.
    """
    import keras
    import numpy as np

    import keras_simclr as simclr

    images, labels = data.train
    test, test_labels = getattr(data, config["evaluated_on"])
    model = keras.Sequential(
        [
            simclr.SimCLRAugmentation(
                images.shape[1],
                scale=(config["smallest_crop"], 1.0),
                color_rate=0,
                grayscale_rate=0,
                blur_rate=0,
                seed=config["seed"],
            ),
            common.encoder(config, images),
            keras.layers.Dense(int(labels.max()) + 1, dtype="float32"),
        ]
    )
    steps = config["epochs"] * (len(images) // config["batch_size"])
    schedule = simclr.warmup_cosine(
        simclr.scaled_learning_rate(0.1, config["batch_size"]),
        steps,
        warmup_steps=steps // 10,
    )
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    images, test = (array.astype("float32") / 255 for array in (images, test))
    model.fit(
        images,
        labels,
        batch_size=config["batch_size"],
        epochs=config["epochs"],
        verbose=0,
    )
    logits = model.predict(test, batch_size=256, verbose=0)
    return float(np.mean(logits.argmax(axis=1) == test_labels))


def statements(runs):
    """What the abstract, figure 7 and table 6 lead one to expect."""
    supervised = common.by_seed(runs, training="supervised")
    ours = {
        times: common.by_seed(runs, training="simclr", width=times * _BASE)
        for times in _TIMES
    }
    widest = max(_TIMES)
    return [
        common.statement(
            f"SimCLR: {times}x is better than {before}x.",
            common.differences(ours[times], ours[before]),
        )
        for before, times in itertools.pairwise(_TIMES)
    ] + [
        common.statement(
            f"A linear probe on {widest}x matches the supervised 1x network: "
            f"it is at most {100 * _TOLERANCE:g} point below.",
            common.differences(ours[widest], supervised),
            above=-_TOLERANCE,
        )
    ]


CLAIM = common.Claim(
    name="width",
    title="Wider encoders",
    paper="Abstract, figure 7, table 6: linear probes on ResNet-50 of 1, 2 and "
    "4 times the width reach 69.3, 74.2 and 76.5, which matches the supervised "
    "ResNet-50 (76.4).",
    here=f"The base is ResNet-10 of width {_BASE:g}. The supervised network "
    f"has the labels of all images, crops and flips, and {_SUPERVISED_EPOCHS} "
    "epochs; the probe has 5,000 of the labels.",
    configurations=configurations,
    work=work,
    statements=statements,
)

if __name__ == "__main__":
    common.main(CLAIM)
