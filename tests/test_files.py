import errno
import os
import pathlib
import shutil
import tempfile

import pytest

from keras_simclr import _files


def fill(place, name=None):
    """Writes a half of something, and fails."""
    with place as staged:
        (staged / name if name else staged).write_text("ha")
        raise OSError("No space left on device")


@pytest.mark.fault(53, 69)
def test_file_is_complete_or_as_it_was(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        fill(_files.replacing(path))
    assert path.read_text() == "old"
    with _files.replacing(path) as staged:
        assert staged.suffix == path.suffix  # Writers go by it.
        staged.write_text("whole")
        assert path.read_text() == "old"
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fault(69)
def test_directory_is_complete_or_absent(tmp_path):
    path = tmp_path / "a" / "run"
    with pytest.raises(OSError, match="No space left"):
        fill(_files.staging(path), "half")
    assert list(path.parent.iterdir()) == []
    with _files.staging(path) as staged:
        (staged / "whole").write_text("")
        assert not path.exists()
    assert [x.name for x in path.iterdir()] == ["whole"]
    with pytest.raises(FileExistsError, match="new or empty"):
        _files.check_is_free(path)
    assert _files.check_is_free(tmp_path / "b") is None


def test_walk_yields_files_and_reports_what_is_in_the_way(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("a.png", "b/c.txt", ".hidden"):
        (tmp_path / name).write_text("")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    reports = []
    files = _files.walk(
        tmp_path,
        lambda path, kind, error: reports.append((path, kind)),
        lambda path: path.endswith(".png"),
    )
    assert sorted(files) == ["a.png", "b/c.txt"]
    assert reports == [("gone.png", "broken link")]


def whole(directory):
    """What `staging` is used for."""
    _files.check_is_free(directory)
    with _files.staging(directory) as staged:
        (staged / "saved_model").mkdir()
        (staged / "saved_model" / "weights").write_text("w")
        (staged / "names.json").write_text("[]")
    return sorted(path.name for path in pathlib.Path(directory).iterdir())


def link(path):
    (path / "link").symlink_to(path / "out")
    return path / "link"


def volume(path):
    (path / "out" / "lost+found").mkdir()
    return path / "out"


def here(path):
    os.chdir(path / "out")
    return "."


def interrupted(path):
    """Ended from outside while it wrote."""
    (path / "out" / ".staged-abc").mkdir()
    return path / "out"


@pytest.mark.parametrize("place", [link, volume, here, interrupted])
def test_empty_directory_is_filled_where_it_is(place, tmp_path, monkeypatch):
    """A mount point cannot be replaced; nor may its parent be written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    inode = (tmp_path / "out").stat().st_ino
    found = whole(place(tmp_path))
    assert {"names.json", "saved_model"} <= set(found)
    assert (tmp_path / "out").stat().st_ino == inode
    beside = {path.name for path in tmp_path.iterdir()}
    assert beside <= {"out", "link"}


def refuse(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.fixture(params=["mkdtemp", "replace", "write_bytes", "mkdir"])
def _read_only(request, tmp_path, monkeypatch):
    """Places that look well and cannot be written; root may do all."""
    owner = tempfile if request.param == "mkdtemp" else pathlib.Path
    monkeypatch.setattr(owner, request.param, refuse)


@pytest.mark.fault(54)
@pytest.mark.usefixtures("_read_only")
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path):
    path = tmp_path / "runs" / "out"
    with pytest.raises(OSError) as error:
        _files.check_is_free(path)
    assert str(error.value) == (
        "The output directory must be one that can be written. Received: "
        f"{str(path)!r} (Read-only file system). Choose another, or see that "
        "it is mounted for writing, yours, and has room"
    )
    assert list(tmp_path.iterdir()) == []


def test_trying_leaves_nothing_behind(tmp_path):
    (tmp_path / "there").mkdir()
    for path in (tmp_path / "there", tmp_path / "a" / "b" / "c"):
        _files.check_is_free(path)
    assert [str(x) for x in tmp_path.rglob("*")] == [str(tmp_path / "there")]


@pytest.mark.fault(54)
def test_places_that_are_no_directory_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(FileExistsError, match="new or empty"):
            _files.check_is_free(path)
    with pytest.raises(OSError, match="File name too long"):
        _files.check_is_free(tmp_path / ("x" * 300))
    with pytest.raises(FileNotFoundError, match="not be a link to nothing"):
        _files.check_is_free(tmp_path / "gone")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("exists", [True, False])
def test_finished_work_is_kept_if_it_cannot_be_moved(
    exists, tmp_path, monkeypatch
):
    path = tmp_path / "out"
    if exists:
        path.mkdir()

    def stage():
        with _files.staging(path) as staged:
            (staged / "whole").write_text("work")
            for name in ("replace", "rename"):
                monkeypatch.setattr(pathlib.Path, name, refuse)

    with pytest.raises(OSError) as error:
        stage()
    (kept,) = tmp_path.rglob(".staged-*")
    assert (kept / "whole").read_text() == "work"
    assert str(error.value) == (
        f"{str(path)!r} could not be written in the end (Read-only file "
        "system). Nothing is lost: what was to stand there is "
        f"{str(kept)!r}. Move it from there"
    )


def test_finished_file_is_kept_if_it_cannot_be_moved(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    monkeypatch.setattr(pathlib.Path, "replace", refuse)

    def replace():
        with _files.replacing(path) as staged:
            staged.write_text("work")

    with pytest.raises(OSError, match="Nothing is lost"):
        replace()
    (kept,) = tmp_path.iterdir()
    assert kept.read_text() == "work"


def test_what_came_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "out"
    path.mkdir()

    def stage():
        with _files.staging(path) as staged:
            (staged / "README.md").write_text("ours")
            (path / "README.md").write_text("mine")

    with pytest.raises(OSError, match="has appeared meanwhile"):
        stage()
    assert (path / "README.md").read_text() == "mine"
    (kept,) = path.glob(".staged-*")
    assert (kept / "README.md").read_text() == "ours"


@pytest.mark.fault(69)
@pytest.mark.parametrize("exists", [True, False])
def test_leftovers_of_a_killed_process_are_removed(exists, tmp_path):
    path = tmp_path / "out"
    if exists:
        path.mkdir()
    with _files.staging(path) as staged:
        copy = staged.with_name(".staged-killed")
        shutil.copytree(staged, copy)  # Its lock went with it.
        (copy / "half").write_text("ha")
        assert _files.check_is_free(path) is None
        assert staged.exists()
        assert not copy.exists()
        (staged / "whole").write_text("")
    assert [x.name for x in path.iterdir()] == ["whole"]


def test_finished_work_and_that_of_others_is_no_leftover(tmp_path):
    for name in (".staged-finished", ".staged-by-others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "whole").write_text("work")
    assert _files.check_is_free(tmp_path / "out") is None
    assert len(list(tmp_path.glob(".staged-*/whole"))) == 2


def test_nothing_is_removed_where_there_are_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "fcntl", None)
    (tmp_path / ".staged-killed").mkdir()
    (tmp_path / ".staged-killed" / _files._UNFINISHED).touch()
    with _files.staging(tmp_path / "out") as staged:
        assert list(staged.iterdir()) == []
    assert (tmp_path / ".staged-killed").exists()


def test_file_that_is_to_be_new_is_not_there(tmp_path):
    path = tmp_path / "table.csv"
    assert _files.check_is_new("path", path) is None
    for name in ("staged-table.csv", "table.csv"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
        with pytest.raises(FileExistsError) as error:
            _files.check_is_new("path", path)
        assert str(error.value) == (
            "`path` must be a new file: nothing is overwritten. Received: "
            f"path={str(tmp_path / name)!r}"
        )


@pytest.mark.fault(53)
def test_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "weights.h5"
    _files.reserve(path, 1000)
    assert path.stat().st_size == 1000
    monkeypatch.setattr(os, "posix_fallocate", full)

    def write(place, name):
        with place as staged:
            _files.reserve(staged / name, 1)

    for place, name in (
        (_files.replacing(path), ""),
        (_files.staging(tmp_path / "out"), "a"),
    ):
        with pytest.raises(OSError, match="' could not be written: No space"):
            write(place, name)
    assert list(tmp_path.iterdir()) == [path]
