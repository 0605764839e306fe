"""Zip files, as strangers may have made them: what they would unpack to."""

import collections
import errno
import pathlib

# An archive may unpack to that much, and to so many times its own size.
_ROOM, _TIMES = 2**29, 100


def is_of_system(error):
    """Whether the system has refused a file, and not a false place in it."""
    return isinstance(error, OSError) and error.errno not in (
        None,
        errno.EINVAL,
    )


def check_members(path, archive):
    """Raises if a zip file is made to take room, or to lead elsewhere.

    Args:
        path: Its path.
        archive: The open `zipfile.ZipFile`.

    Raises:
        ValueError: With what is wrong with it, for a sentence that names it.

    Example:

    >>> import io, zipfile
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     with zipfile.ZipFile(file, "w") as archive:
    ...         archive.writestr("../../x", "")
    ...         check_members(file.name, archive)
    Traceback (most recent call last):
    ValueError: its part '../../x' would lie elsewhere
    """
    members = archive.infolist()
    names = collections.Counter(x.filename for x in members)
    for name, count in names.items():
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"its part {name!r} would lie elsewhere")
        if count > 1:
            raise ValueError(f"it has two parts {name!r}")
    size = sum(member.file_size for member in members)
    if size > _ROOM + _TIMES * pathlib.Path(path).stat().st_size:
        raise ValueError(f"it would unpack to {size / 1e9:,.1f} GB")
