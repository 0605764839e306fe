"""Datasets of TensorFlow Datasets: found, and whether they can be had."""

import difflib
import pathlib
import socket
import urllib.parse
import urllib.request

from keras_simclr import _checks

_PATIENCE = 10  # Seconds that the host of a download has to answer.


def builder_of(name, data_dir):
    """TFDS's builder of a dataset."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        near = difflib.get_close_matches(name, tfds.list_builders(), n=3)
        cause = f"Near matches: {', '.join(near) or 'none'}"
    except Exception as error:  # TFDS raises what it likes.
        cause = f"TFDS says: {' '.join(str(error).split())}"
    raise ValueError(
        "`name` must be a dataset of TensorFlow Datasets. Received: "
        f"name={name!r}. {cause}"
    )


def check_can_prepare(builder, name):
    """Refuses a dataset to download from where nobody answers.

    TFDS would try for minutes.
    """
    directory = pathlib.Path(builder.data_dir)
    home = pathlib.Path(builder.data_dir_root)
    urls = dict(builder.url_infos or {})
    is_there = directory.exists() or any(home.glob("downloads/*"))
    if is_there or not urls or urllib.request.getproxies():
        return
    url = urllib.parse.urlsplit(min(urls))
    ports = {"http": 80, "ftp": 21}
    try:
        socket.create_connection(
            (url.hostname, url.port or ports.get(url.scheme, 443)), _PATIENCE
        ).close()
    except OSError as error:
        raise OSError(
            "A dataset of TFDS must be prepared already, or there must be a "
            f"network to download it. Received: {name!r}, which is not in "
            f"{str(directory)!r}, and {url.hostname} does not answer ({error})."
            ' Where there is a network, do: python -c "import '
            "tensorflow_datasets as tfds; "
            f"tfds.builder('{name}').download_and_prepare()\", and copy the "
            "directory that it tells here, or name it in --data_dir"
        ) from None


def split_size(builder, split):
    """Number of examples in a split; refuses one that there is not."""
    splits = tuple(builder.info.splits)
    try:
        return builder.info.splits[split].num_examples
    except Exception as error:  # TFDS raises what it likes.
        if split.split("[")[0] not in splits:
            _checks.choice("split", split, splits)
        raise ValueError(
            "`split` must be a split in TFDS's notation, such as "
            f"'train[:90%]'. Received: split={split!r}"
        ) from error
