"""Parquet files that anybody wrote, and in words what is wrong with them."""

import contextlib
import pathlib

from keras_simclr import archives

_ROOM = 10_000  # Rows that any file may have.


@contextlib.contextmanager
def explaining(refuse):
    """Context in which what PyArrow raises becomes one sentence.

    Args:
        refuse: Function that is told what is wrong, in words, and raises.
    """
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if archives.is_of_system(error):
            raise
        refuse(" ".join(str(error).split()))


def open_table(path, refuse, **kwargs):
    """Opens a file, if it does not claim far more than it can hold.

    Args:
        path: Path of the file, which has a row for each image.
        refuse: As `explaining`.
        **kwargs: As `pyarrow.parquet.ParquetFile`.

    Returns:
        `pyarrow.parquet.ParquetFile`.

    Raises:
        OSError: If it cannot be read.

    Example:

    ```python
    with open_table("photos.parquet", print) as file:
        print(file.metadata.num_rows)
    ```
    """
    import pyarrow.parquet

    size = pathlib.Path(path).stat().st_size
    with explaining(refuse):
        file = pyarrow.parquet.ParquetFile(path, **kwargs)
    # Names or images that differ take a byte each, at least; runs of equal
    # ones take no room, and could fill the memory.
    if file.metadata.num_rows > size + _ROOM:
        refuse(f"{file.metadata.num_rows:,} rows in {size:,} bytes")
    return file
