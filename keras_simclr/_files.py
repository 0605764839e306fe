"""Files and directories: staged writing, what is free, listing, odd names."""

import contextlib
import heapq
import os
import pathlib
import shutil
import stat
import tempfile

import tensorflow as tf


@contextlib.contextmanager
def staging(directory):
    """Context of a directory to write into, which is complete or absent then.

    Where it stands in the end must be new or empty.
    """
    directory = pathlib.Path(directory)
    check_is_free(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    staged = pathlib.Path(
        tempfile.mkdtemp(prefix=".staged-", dir=directory.parent)
    )
    try:
        yield staged
        staged.chmod(0o755)  # mkdtemp makes it private.
        staged.replace(directory)
    except tf.errors.OpError as error:
        raise OSError(
            f"{str(directory)!r} could not be written: {error.message}"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def check_is_free(directory):
    """Refuses a file, or a directory that holds anything."""
    directory = pathlib.Path(directory)
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists():
        raise FileExistsError(
            "The output directory must be new or empty: nothing is "
            f"overwritten. Received: {str(directory)!r}"
        )


@contextlib.contextmanager
def replacing(path):
    """Context of a path to write to, which takes the place of `path` then.

    At any time `path` is complete, or as it was before.
    """
    staged = path_beside(path)
    try:
        yield staged
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def path_beside(path):
    """Where a file is written until it is complete."""
    return path.with_name(f"staged-{path.name}")


def valid_names(names):
    r"""List of names with an escape for each byte that is not UTF-8.

    >>> valid_names(["a.png", "\udcff.png"])
    ['a.png', '\\xff.png']
    """
    return [
        name.encode("utf-8", "surrogateescape").decode(
            "utf-8", "backslashreplace"
        )
        for name in names
    ]


def readable_directory(directory):
    """Returns a directory's path as text; raises if it cannot be listed."""
    directory = os.fsdecode(directory)
    received = f"Received: directory={directory!r}"
    try:
        os.scandir(directory).close()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"`directory` must exist. {received}. Check its spelling, and "
            "that its disk is mounted"
        ) from None
    except NotADirectoryError:
        raise NotADirectoryError(
            f"`directory` must be a directory, not a file. {received}. Name "
            "the directory that holds the images"
        ) from None
    except PermissionError:
        raise PermissionError(
            f"`directory` must be readable. {received}. Make it so, with "
            "chmod +rx, or ask its owner"
        ) from None
    return directory


def state(path):
    """What changes when a file does: its size and time; None without one."""
    try:
        status = os.stat(path)  # noqa: PTH116 - in a loop over all files.
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def walk(directory, report, is_wanted):
    """Yields paths of regular files; reports those that cannot be opened.

    `report` takes a path, the kind of problem and the `OSError` or None.
    """
    root, seen = pathlib.Path(directory), set()
    folders, links = [""], []
    while folders or links:
        # Links come last and in order: real paths win, and always the same.
        folder = folders.pop() if folders else heapq.heappop(links)
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                entries = list(entries)
        except OSError as error:
            report(folder, "unreadable folder", error)
            continue
        prefix = folder and f"{folder}/"
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = prefix + entry.name
            if entry.is_file(follow_symlinks=False):
                yield path
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            else:
                yield from _follow(entry, path, links, report, is_wanted)


def _follow(entry, path, links, report, is_wanted):
    """What `walk` does with links, fifos, sockets and devices."""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if is_wanted(path):
            report(path, "broken link", error)
        return
    if stat.S_ISREG(mode):
        yield path
    elif stat.S_ISDIR(mode):
        heapq.heappush(links, path)
    elif is_wanted(path):
        report(path, "not a regular file", None)
