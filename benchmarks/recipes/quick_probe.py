"""What `linear_probe(quick=True)`, as `evaluate` has it, costs and spares.

    python benchmarks/recipes/quick_probe.py --cifar10=CIFAR10.npz \
        [--results=DIR] [--data_dir=DIR] [--features=DIR]

probes pixels, an untrained encoder and one that was trained for 80 steps, of
Fashion-MNIST, CIFAR-10 and the digits of scikit-learn, with all labels, on one
core: as it is, and quickly. Ten minutes. The encoder is a ResNet-10 of quarter
width. What is in `quick_probe.json` of `--results` is not run again.

CIFAR10.npz has the arrays `images`, (60000, 32, 32, 3), and `labels`, the
10,000 test images last. Fashion-MNIST comes from TFDS.
"""

import argparse
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import numpy as np

from benchmarks.datasets import fashion_mnist
from benchmarks.results import add_results_flag, markdown, once, report

RESULTS = pathlib.Path(__file__).parent / "results"
_DATA = ("fashion_mnist", "cifar10", "digits")
_FEATURES = ("pixels", "untrained", "simclr")
_STEPS = 80


def main():
    """Reads the flags and runs."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cifar10", help="File of CIFAR-10.")
    parser.add_argument("--data_dir", help="Directory of prepared TFDS data.")
    parser.add_argument(
        "--features",
        type=pathlib.Path,
        help="Directory to keep features in, and to take them from.",
    )
    add_results_flag(parser, RESULTS)
    values = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        values.features = values.features or pathlib.Path(directory)
        pairs = [
            [run(data, name, quick, values) for quick in (False, True)]
            for data in _DATA
            for name in _FEATURES
        ]
    report(table(pairs))


def table(pairs):
    """A Markdown table of pairs of results: as it is, and quickly."""
    titles = ["data", "features", "linear, %", "quick, %", "s", "quick, s"]
    rows = []
    for pair in pairs:
        shares = [f"{100 * result['accuracy']:.2f}" for result in pair]
        seconds = [f"{result['cpu_seconds']:.1f}" for result in pair]
        first = pair[0]
        rows.append([first["data"], first["features"], *shares, *seconds])
    return markdown(titles, rows)


def run(data, features, quick, values):
    """Probes, unless the result is there.

    Args:
        data: Name of the data set.
        features: Name of the features.
        quick: As in `linear_probe`.
        values: Flags.

    Returns:
        Dictionary: these, the share of 1, the chosen C and CPU seconds.
    """
    from threadpoolctl import threadpool_limits

    import keras_simclr as simclr

    def probe():
        arrays = _arrays(data, values)
        x, y, size = arrays[features], arrays["labels"], int(arrays["train"])
        with threadpool_limits(1):
            start = time.process_time()
            found = simclr.linear_probe(
                x[:size], y[:size], x[size:], y[size:], quick=quick
            )
            seconds = time.process_time() - start
        return {
            "accuracy": round(found.accuracy, 4),
            "inverse_penalty": found.inverse_penalty,
            "cpu_seconds": round(seconds, 1),
        }

    key = {"data": data, "features": features, "quick": quick}
    return once(values.results / "quick_probe.json", key, probe)


def _arrays(data, values):
    """Features by name, labels, and how many are to learn from."""
    path = values.features / f"{data}.npz"
    if not path.exists():
        (images, labels), (others, other_labels) = _load(data, values)
        arrays = _features(images, others)
        arrays["labels"] = np.concatenate([labels, other_labels])
        np.savez(path, train=len(images), **arrays)
    with np.load(path) as file:
        return dict(file)


def _load(data, values):
    if data == "fashion_mnist":
        return fashion_mnist("train", "test", data_dir=values.data_dir)
    if data == "digits":
        from keras_simclr import demo

        return demo.digits()
    with np.load(values.cifar10) as file:
        images, labels = file["images"], file["labels"]
    return (images[:50_000], labels[:50_000]), (
        images[50_000:],
        labels[50_000:],
    )


def _features(images, others):
    """Of both sets, one after the other."""
    import keras

    import keras_simclr as simclr
    from keras_simclr import copies, features
    from keras_simclr.recipe import Recipe

    keras.utils.set_random_seed(0)
    recipe = Recipe(
        width_multiplier=0.25, batch_size=256, strength=1.0, blur_rate=0.5
    )
    shape = images.shape[1:]
    model = simclr.SimCLRModel(
        recipe.encoder(shape),
        recipe.projection_head(),
        augmentation=recipe.augmentation(shape),
    )
    model.compile(recipe.optimizer(_STEPS), recipe.loss())
    size = min(256, len(images) // 4)
    count = min(len(images), size * _STEPS)
    epochs = size * _STEPS // count
    model.fit(images[:count], batch_size=size, epochs=epochs, verbose=2)
    untrained = copies.untrained_copy(model, 0)
    examples = {"images": np.concatenate([images, others])}
    features.settle_batch_norm(untrained, examples, np.arange(len(images)), 0)
    functions = {
        "pixels": features.raw_features(model),
        "untrained": features.representation(untrained),
        "simclr": features.representation(model),
    }
    return features.Features(functions, examples).arrays


if __name__ == "__main__":
    main()
