"""Files and directories: staged writing, what is free, listing, odd names."""

import contextlib
import errno
import heapq
import os
import pathlib
import re
import shutil
import socket
import stat
import tempfile
import warnings

try:
    import fcntl
except ImportError:  # On Windows.
    fcntl = None

_STAGED = ".staged-"  # How names begin of what is not complete.
# What such a directory holds until it is, locked by who writes it.
_UNFINISHED = ".keras-simclr-unfinished"
LOCK = ".keras-simclr-lock"  # The same of what several processes may write.
# What holds a network in a directory that one of the commands wrote.
NETWORKS = ("model.keras", "encoder.keras", "classifier.keras")
_TABLES = (".npz", ".parquet")  # Of vectors.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What systems put into a directory, or a fresh volume, that is empty.
_OF_SYSTEMS = {"lost+found", ".DS_Store", ".localized", "Thumbs.db"}


@contextlib.contextmanager
def staging(directory):
    """Context of a directory to write into, which is complete or absent then.

    Where it stands in the end must be new or empty. What could not be moved
    there stays where it was written.
    """
    directory = pathlib.Path(directory)
    check_is_free(directory)
    staged = _staged(directory)
    with locked(staged, _UNFINISHED):
        try:
            yield staged
        except BaseException as error:
            shutil.rmtree(staged, ignore_errors=True)
            _explain(error, directory)
            raise
        with _keeping(staged, directory):
            (staged / _UNFINISHED).unlink(missing_ok=True)
            _move(staged, directory)


def _explain(error, place):
    """Raises another error if this one does not say which place is full."""
    import tensorflow as tf  # Late: flags are checked without it.

    why = None
    if isinstance(error, tf.errors.OpError):
        why = error.message
    elif isinstance(error, OSError) and error.errno in _FULL:
        why = error.strerror
    if why is not None:
        raise OSError(f"{str(place)!r} could not be written: {why}") from error


def _staged(directory):
    """Makes the place to write into: inside of what is there, or beside."""
    # A mounted volume or a link stays what it is, and its parent may be one
    # that cannot be written.
    home = directory if directory.exists() else directory.parent
    home.mkdir(parents=True, exist_ok=True)
    for left in home.glob(f"{_STAGED}*/{_UNFINISHED}"):
        # That of a process which was killed: nobody has locked it.
        held = locked(left.parent, _UNFINISHED)
        with contextlib.suppress(OSError), held as is_locked:
            if is_locked:
                shutil.rmtree(left.parent)
    return pathlib.Path(tempfile.mkdtemp(prefix=_STAGED, dir=home))


def _move(staged, directory):
    """Moves what is finished to its place, over nothing that is there."""
    if staged.parent != directory:
        staged.chmod(0o755)  # mkdtemp makes it private.
        staged.replace(directory)
        return
    # What readers look for comes last: class_names.json, model.keras.
    order = sorted(staged.iterdir(), key=lambda x: (x.is_dir(), x.name))
    for path in reversed(order):
        place = directory / path.name
        if os.path.lexists(place):
            raise FileExistsError(f"{str(place)!r} has appeared meanwhile")
        path.rename(place)
    staged.rmdir()


@contextlib.contextmanager
def _keeping(staged, place):
    """Context of a move; an error says where the work is that did not move."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{str(place)!r} could not be written in the end "
            f"({error.strerror or error}). Nothing is lost: what was to stand "
            f"there is {str(staged)!r}. Move it from there"
        ) from error


def check_is_free(directory):
    """Refuses a directory that holds anything, or that cannot be written."""
    check_is_empty(directory)
    check_can_write(directory)


def check_is_empty(directory):
    """Refuses a file, a link to nothing, or a directory that holds anything."""
    directory = pathlib.Path(directory)
    try:
        if all(map(_counts_for_nothing, directory.iterdir())):
            return
    except NotADirectoryError:
        pass
    except FileNotFoundError:
        if not directory.is_symlink():
            return
        raise FileNotFoundError(
            "The output directory must not be a link to nothing. Received: "
            f"{str(directory)!r}. Make what it points to, or mount its disk"
        ) from None
    raise FileExistsError(
        "The output directory must be new or empty: nothing is "
        f"overwritten. Received: {str(directory)!r}"
    )


def _counts_for_nothing(path):
    """Whether it is what systems put into an empty directory, or staged."""
    name = path.name
    return name in _OF_SYSTEMS or name.startswith((_STAGED, LOCK))


def check_can_write(directory):
    """Refuses a directory that cannot be written; finds out by writing.

    What is written is removed again, and so are directories made for it.
    """
    directory = pathlib.Path(directory)
    made = [x for x in (directory, *directory.parents) if not x.exists()]
    staged = None
    try:
        staged = _staged(directory)
        trial = directory / f"{staged.name}.txt"
        (staged / trial.name).write_bytes(bytes(512))
        _move(staged, directory)
        trial.unlink()
    except OSError as error:
        raise type(error)(
            "The output directory must be one that can be written. Received: "
            f"{str(directory)!r} ({error.strerror or error}). Choose another, "
            "or see that it is mounted for writing, yours, and has room"
        ) from error
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def locked(directory, name=LOCK):
    """Context of a directory that no other such context may be of meanwhile.

    A file of that name says which process it is, and where. The system frees it
    with the process, however that ends; some network disks cannot: then one
    that is gone from this machine holds nothing. Yields whether it is locked.
    """
    if fcntl is None:
        yield False
        return
    path = pathlib.Path(directory, name)
    handle = _lock(path)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}".encode(), 0)
        yield True
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # Before it is free.
        os.close(handle)


def _lock(path):
    """Opens and locks a file; raises if another process has done so."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        holder = os.pread(handle, 300, 0).decode(errors="replace").split()
        cure = ""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = False
        except BlockingIOError:
            is_held = True
        except OSError:  # Not every network file system has them.
            is_held = _may_be_at_work(*holder)
            cure = f". If that has ended, delete {str(path)!r}"
        if is_held:
            os.close(handle)
            who = "another one"
            if len(holder) == 2:
                who = f"process {holder[0]} on {holder[1]}"
            raise BlockingIOError(
                "The output directory must be written by one process at a "
                f"time. Received: {str(path.parent)!r}, where {who} is at "
                f"work. Wait until it ends, or choose another directory{cure}"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # Who had it has deleted it meanwhile.


def _may_be_at_work(process="", host=""):
    """Whether a process may be running, on a machine that may be another."""
    if not (process.isdecimal() and host):
        return False
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # It is somebody else's.
        pass
    return True


@contextlib.contextmanager
def replacing(path):
    """Context of a path to write to, which takes the place of `path` then.

    At any time `path` is complete, or as it was before. What could not take
    its place stays where it was written.
    """
    staged = path_beside(path)
    try:
        yield staged
    except BaseException as error:
        staged.unlink(missing_ok=True)
        _explain(error, path)
        raise
    with _keeping(staged, path):
        _flush(staged)
        staged.replace(path)
        _flush(path.parent)


@contextlib.contextmanager
def tried():
    """Context of writing without which training goes on; a failure is told."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{error}. Training goes on", stacklevel=3)


def _flush(path):
    """Has the system write a file, or the names in a directory, to its disk.

    A rename may otherwise outlive a power cut, and what was written not.
    """
    if fcntl is None:  # Windows flushes only what is open for writing.
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # No such disk.
            raise
    finally:
        os.close(handle)


def reserve(path, size):
    """Refuses a new file for which there is no room, where that can be known.

    For writers that would end the process: HDF5 does, where a disk is full.
    """
    if not hasattr(os, "posix_fallocate"):  # On macOS and Windows.
        return
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in _FULL:
                raise


def check_is_new(name, path):
    """Refuses a path where a file is, or would be in the way meanwhile."""
    for each in (path, path_beside(path)):
        if os.path.lexists(each):
            raise FileExistsError(
                f"`{name}` must be a new file: nothing is overwritten. "
                f"Received: {name}={str(each)!r}"
            )


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


def in_one_line(text):
    r"""Text that shows as it is: with an escape for each sign that would not.

    >>> in_one_line("a\nb\u202e\udcff.png")
    'a\\nb\\u202e\\xff.png'
    """
    (text,) = valid_names([text])
    return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in text)


def readable_directory(directory, name="directory"):
    """Returns a directory's path as text; raises if it cannot be listed."""
    directory = os.fsdecode(directory)
    received = f"Received: {name}={directory!r}"
    try:
        os.scandir(directory).close()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"`{name}` must exist. {received}. Check its spelling, and "
            "that its disk is mounted"
        ) from None
    except NotADirectoryError:
        raise NotADirectoryError(
            f"`{name}` must be a directory, not a file. {received}. Name "
            "the directory that holds the images"
        ) from None
    except PermissionError:
        raise PermissionError(
            f"`{name}` must be readable. {received}. Make it so, with "
            "chmod +rx, or ask its owner"
        ) from None
    return directory


def at_home(name, path):
    """The path with the home directory in it: shells leave --data=~/x."""
    if not path.startswith("~"):
        return path
    try:
        return str(pathlib.Path(path).expanduser())
    except RuntimeError:
        raise ValueError(
            f"`{name}` must be below a home directory that is known. Received: "
            f"{name}={path!r}. Write the whole path"
        ) from None


def check_folder(name, path):
    """Refuses what is no directory that can be listed."""
    readable_directory(path, name)


def check_exists(name, path, *, rule, is_directory=None, holds=""):
    """Refuses a path where nothing is, or not what it should be.

    `holds`: what must be in the directory.
    """
    place = pathlib.Path(path, holds)
    try:
        found = stat.S_ISDIR(place.stat().st_mode)
    except (OSError, ValueError) as error:
        why = f"{getattr(error, 'strerror', error)}: {str(place)!r}"
    else:
        if is_directory in (None, found):
            return
        why = "which is a directory" if found else "which is a file"
    raise FileNotFoundError(
        f"`{name}` must be {rule}. Received: {name}={path!r} ({why})"
    )


def check_data(name, path):
    """Refuses images that are nowhere; those with a prefix are not looked for.

    `path`: as `data` of a recipe.
    """
    if re.match("[a-z]+:", path):
        return
    if pathlib.Path(path).is_dir():
        check_folder(name, path)
    rule = (
        "an existing folder of files, PATH.csv, PATH.parquet, tar:PATTERN, "
        "parquet:PATTERN, PATH.npz, PATH.npy or tfds:NAME[/CONFIG]"
    )
    if re.fullmatch("[a-z0-9_]+", path):
        rule += f" (of TensorFlow Datasets, write tfds:{path})"
    check_exists(name, path, rule=rule)


def is_table(path):
    """Whether a path is named like a table of vectors."""
    return str(path).lower().endswith(_TABLES)


def check_network(name, path, *, or_table=False):
    """Refuses encoders that are nowhere; names with a prefix are no paths.

    `path`: as `name` of `pretrained.open_encoder`; or that of a table.
    """
    if re.match("keras_(applications|hub):.", path):
        return
    rule = (
        "an existing run directory, one that `export` wrote, a .keras file, "
        "keras_applications:NAME or keras_hub:PRESET"
    )
    if or_table:
        rule += ", or a table of vectors, PATH.parquet or PATH.npz"
    elif is_table(path):
        refuse_table(name, path)
    holds = ""
    if pathlib.Path(path).is_dir():
        found = [x for x in NETWORKS if pathlib.Path(path, x).exists()]
        (holds, *_) = [*found, NETWORKS[0]]
    check_exists(name, path, rule=rule, is_directory=False, holds=holds)


def refuse_table(name, path):
    """Refuses vectors where there must be what makes them."""
    raise ValueError(
        f"`{name}` must be an encoder, which can be trained; vectors in a "
        f"table cannot. Received: {name}={str(path)!r}. Compare them with "
        "`evaluate`, or name the encoder that made them"
    )


def check_checkpoint(name, path):
    """Refuses a path where neither anything is nor files begin so."""
    if not pathlib.Path(f"{path}.index").exists():
        check_exists(name, path, rule="an existing SavedModel or checkpoint")


def check_output(_, path, *, unless=()):
    """Refuses what `check_is_free` does, unless one of these names is in it."""
    if not any(pathlib.Path(path, each).exists() for each in unless):
        check_is_free(path)


@contextlib.contextmanager
def naming(flag):
    """Context whose errors begin with the name of a flag, if they lack it."""
    try:
        yield
    except OSError as error:
        if f"`{flag}`" in str(error):
            raise
        raise type(error)(f"--{flag}: {error}") from error


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
