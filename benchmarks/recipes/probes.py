"""What the encoder of a run is worth on Fashion-MNIST."""

from benchmarks.datasets import fashion_mnist


def probe_run(run_dir, splits, data_dir=None, labels=None):
    """Both probes of the encoder of a run.

    Args:
        run_dir: Directory that `pretrain` wrote.
        splits: Pair: to learn from and to test on.
        data_dir: As in `fashion_mnist`.
        labels: Most labels to learn from, or None for all.

    Returns:
        Dictionary: `linear` and `knn`, shares of 1.
    """
    import keras_simclr as simclr
    from keras_simclr import runs

    train, test = fashion_mnist(*splits, data_dir=data_dir)
    train = [array[:labels] for array in train]
    model = runs.load_model(run_dir)
    arrays = []
    for images, classes in (train, test):
        arrays += [simclr.extract_features(model, images), classes]
    return {
        "linear": simclr.linear_probe(*arrays).accuracy,
        "knn": simclr.knn_probe(*arrays).accuracy,
    }
