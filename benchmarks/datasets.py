"""Data sets that several kinds of benchmarks use."""


def fashion_mnist(*splits, data_dir=None):
    """Loads Fashion-MNIST through TensorFlow Datasets.

    Args:
        *splits: In TFDS's notation.
        data_dir: Directory of prepared datasets, or None for TFDS's own.

    Returns:
        List of pairs of arrays, images and labels, one for each split.
    """
    import tensorflow_datasets as tfds

    return [
        tfds.as_numpy(
            tfds.load(
                "fashion_mnist",
                split=split,
                data_dir=data_dir,
                batch_size=-1,
                as_supervised=True,
            )
        )
        for split in splits
    ]
