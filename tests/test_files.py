import pytest

from keras_simclr import _files


def fill(place, name=None):
    """Writes a half of something, and fails."""
    with place as staged:
        (staged / name if name else staged).write_text("ha")
        raise OSError("No space left on device")


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
