"""Measures keras_simclr beside its peers; see README.md.

    python benchmarks/run.py [--quick] [--only=augmentation,loss]

An hour, or five minutes with `--quick`, on two cores.
"""

import argparse
import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks.speed import time_to_accuracy
from benchmarks.speed.comparison import compare
from benchmarks.speed.processes import Contender, set_up_environments


def main():
    """Sets up the environments and runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="Smaller, within five minutes."
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(_COMPARISONS),
        help=f"Some of: {', '.join(_COMPARISONS)}.",
    )
    parser.add_argument("--data_dir", help="Directory of prepared TFDS data.")
    arguments = parser.parse_args()
    set_up_environments()
    for name in arguments.only:
        if name != "time_to_accuracy":
            _COMPARISONS[name](arguments.quick)
        elif not arguments.quick:
            time_to_accuracy.run(data_dir=arguments.data_dir)


def augmentation(quick):
    """Views per second on one core."""
    for source, size, batch_size in ((32, 32, 256), (320, 224, 32)):
        sizes = {"source": source, "size": size, "batch_size": batch_size}
        contenders = [
            Contender(name, f"contenders_{place}augmentation", sizes)
            for name, place in (
                ("keras_simclr", "ours:"),
                ("albumentations", "torch:albumentations_"),
                ("lightly", "torch:lightly_"),
                ("kornia", "torch:kornia_"),
                ("torchvision v2", "torch:torchvision_"),
                ("Keras layers", "keras:layers_"),
                ("tf.image", "keras:tf_image_"),
                ("tensorflow-similarity", "similarity:"),
            )
        ]
        compare(
            f"Augmentation, {size} px from {source} px",
            "views/s",
            contenders[:3] if quick else contenders,
            cores=1,
            seconds=0.5 if quick else 2.0,
            quick=quick,
        )
    few = {**sizes, "smallest_crop": 0.2}
    compare(
        f"Augmentation, {size} px from {source} px, crops of 0.2 to 1",
        "views/s",
        [
            dataclasses.replace(contender, arguments=few)
            for contender in contenders[:2]
        ],
        cores=1,
        seconds=0.5 if quick else 2.0,
        quick=quick,
    )


def at_rest(quick):
    """Views per second on one core, of those that nothing is drawn for."""
    for source, size, batch_size in ((256, 64, 64), (512, 224, 16)):
        sizes = {"source": source, "size": size, "batch_size": batch_size}
        compare(
            f"At rest, {size} px from {source} px",
            "views/s",
            [
                Contender(name, f"contenders_{place}", {**sizes, **more})
                for name, place, more in (
                    ("keras_simclr, at rest", "ours:at_rest", {}),
                    ("keras_simclr, training", "ours:augmentation", {}),
                    ("tf.image.resize, antialias", "keras:tf_image_resize", {}),
                    (
                        "keras_simclr, exported",
                        "ours:at_rest",
                        {"is_exported": True},
                    ),
                )
            ],
            cores=1,
            seconds=0.5 if quick else 2.0,
            quick=quick,
        )


def training(quick):
    """Images per second of the whole training step on two cores."""
    widths = {0.25: ("quarter", 2)} if quick else _WIDTHS
    peers = {
        "lightly, tuned": {"is_tuned": True, "workers": 1},
        "lightly, default": {"is_tuned": False, "workers": 2},
    }
    if not quick:  # Compiling takes a minute.
        peers["lightly, tuned and compiled"] = {
            **peers["lightly, tuned"],
            "is_compiled": True,
        }
    for width, (name, steps) in widths.items():
        size = {"width": width, "steps": steps}
        ours = [
            Contender(
                f"keras_simclr, {precision}",
                "contenders_ours:training",
                {**size, "precision": precision},
            )
            for precision in ("mixed_bfloat16", "float32")
        ]
        theirs = [
            Contender(peer, "contenders_torch:training", {**size, **arguments})
            for peer, arguments in peers.items()
        ]
        compare(
            f"Training step, ResNet-18 of {name} width, batch 256, 32 px",
            "images/s",
            ours + theirs,
            seconds=0.0,
            quick=quick,
        )


# Width multiplier: name, steps at a time.
_WIDTHS = {1.0: ("full", 1), 0.25: ("quarter", 4)}


def loss(quick):
    """Time and memory of the loss and its gradient on two cores."""
    counts = (256, 1024, 4096, 8192, 16384, 65536)
    for count in (4096,) if quick else counts:
        size = {"count": count}
        matrix = 4 * (2 * count) ** 2 / 2**30  # GiB
        compare(
            f"NT-Xent, forward and backward, N = {count:,}, D = 128",
            "ms",
            [
                Contender("keras_simclr", "contenders_ours:loss", size),
                Contender(
                    "lightly",
                    "contenders_torch:loss",
                    size,
                    _too_large(_MATRICES["lightly"] * matrix),
                ),
                Contender(
                    "tensorflow-similarity",
                    "contenders_similarity:loss",
                    size,
                    _too_large(_MATRICES["tensorflow-similarity"] * matrix),
                ),
                Contender(
                    "three products",
                    "contenders_ours:products",
                    size,
                    _too_large(3 * matrix),
                ),
                Contender(
                    "three products, 64 rows at a time",
                    "contenders_ours:products",
                    {**size, "rows": 64},
                ),
            ],
            has_memory=True,
            seconds=0.5,
            rounds=5 if count < 65536 else 0,
            quick=quick,
        )


# Copies of the similarities that they hold at their peak.
_MATRICES = {"lightly": 4.3, "tensorflow-similarity": 2.7}


def _too_large(gib):
    return f"needs about {gib:.0f} GiB" if gib > 16 else None


def optimizer(quick):
    """One step of LARS beside one of SGD, on two cores."""
    compare(
        "Optimizer step, ResNet-50",
        "ms",
        [
            Contender(who, f"contenders_{module}:optimizer", {"name": name})
            for who, module, name in (
                ("keras_simclr, LARS", "ours", "LARS"),
                ("Keras, SGD", "ours", "SGD"),
                ("lightly, LARS", "torch", "LARS"),
                ("PyTorch, SGD", "torch", "SGD"),
            )
        ],
        seconds=1.0,
        quick=quick,
    )


def start_up(quick):
    """Seconds of fresh processes."""
    compare(
        "Start-up",
        "ms",
        [
            Contender(name, _PYTHON, {"code": code})
            for name, code in (
                ("import keras_simclr", "import keras_simclr"),
                ("import keras", "import keras"),
                ("a model", _MODEL),
                ("a model, first step", _MODEL + _FIRST_STEP),
                ("a model, first batch", _MODEL + "; model.predict(images)"),
            )
        ]
        + [
            Contender(
                "keras-simclr --help",
                "contenders_start_up:command_line",
                {"arguments": ["--help"]},
            )
        ],
        seconds=0.0,
        rounds=0 if quick else 5,
        quick=quick,
    )


_PYTHON = "contenders_start_up:python"
_MODEL = (
    "import keras_simclr as simclr, numpy as np; "
    "images = np.zeros((256, 32, 32, 3), 'uint8'); shape = images.shape[1:]; "
    "encoder = simclr.ResNet(18, stem='cifar', width_multiplier=0.25, "
    "input_shape=shape); model = simclr.SimCLRModel(encoder); model.compile()"
)
_FIRST_STEP = "; model.fit(images, batch_size=256, verbose=0)"
_COMPARISONS = {
    "augmentation": augmentation,
    "at_rest": at_rest,
    "training": training,
    "loss": loss,
    "optimizer": optimizer,
    "start_up": start_up,
    "time_to_accuracy": None,
}


if __name__ == "__main__":
    main()
