import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.pictures import PNG, encoded, picture, write
from PIL import Image

from keras_simclr import folders, manifests, scanning, sources


def test_read_manifest_returns_the_usable_images(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 8
    files = {
        "b.jpg": encoded(picture(0), "JPEG", exif=turned),
        "a.png": PNG,
        "c.png": PNG,
        "d.jpg": b"",
    }
    path = tmp_path / "manifest.parquet"
    scanning.scan(write(tmp_path, files), path)
    manifest = manifests.read_manifest(path)
    assert manifest.paths == ["a.png", "b.jpg", "c.png"]
    assert manifest.widths.tolist() == [300, 32, 300]
    assert manifest.heights.tolist() == [200, 48, 200]
    assert manifest.problems == {"d.jpg": "empty"}
    assert manifest.groups.dtype == "int64"
    first, second, third = manifest.groups
    assert first == third != second


@pytest.mark.fault(55)
def test_read_manifest_refuses_other_files(tmp_path):
    absent, text = tmp_path / "absent", tmp_path / "text"
    text.write_text("no Parquet")
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), other)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(other.read_bytes()[:-20])
    with pytest.raises(FileNotFoundError) as raised:
        manifests.read_manifest(absent)
    assert str(raised.value) == (
        "`manifest` must be that of a scan. Received: "
        f"manifest={str(absent)!r}, which is no file. Write one with "
        "keras-simclr scan"
    )
    for path in (text, other, cut):
        with pytest.raises(ValueError) as raised:
            manifests.read_manifest(path)
        assert str(raised.value).startswith(
            "`manifest` must be one that keras-simclr scan wrote. "
            f"Received: manifest={str(path)!r} ("
        )


def scanned(tmp_path, count=10):
    """A folder of images, and its manifest."""
    images = {f"{n}.png": encoded(picture(n), "PNG") for n in range(count)}
    write(tmp_path / "images", images)
    scanning.scan(tmp_path / "images", tmp_path / "manifest.parquet")
    return tmp_path / "images", tmp_path / "manifest.parquet"


@pytest.mark.fault(40)
def test_files_that_a_manifest_does_not_know_are_counted(tmp_path):
    directory, manifest = scanned(tmp_path)
    new = {"new.png": PNG, "sub/new.jpg": PNG, "a.txt": b"", "b.tif.bak": b""}
    write(directory, new)
    folder = folders.ImageFolder(directory, manifest=manifest)
    assert len(folder.paths) == 10
    assert sources.in_words(folder) == (
        "10 images, no classes. 4 other files are not read: 1 .bak, 1 .txt, "
        "2 not in the manifest"
    )


@pytest.mark.fault(40)
def test_files_that_are_gone_are_left_out_up_to_the_limit(tmp_path):
    directory, manifest = scanned(tmp_path)
    (directory / "3.png").unlink()
    folder = folders.ImageFolder(
        directory, manifest=manifest, unreadable_limit=0.1
    )
    assert folder.left_out == {"3.png": "missing"}
    assert sources.in_words(folder) == (
        "9 images, no classes. 1 other file is not read: 1 missing"
    )
    assert "3.png" not in folder.paths
    with pytest.raises(ValueError) as info:
        folders.ImageFolder(directory, manifest=manifest)
    assert str(info.value) == (
        "`manifest` must be that of these images. Received: "
        f"manifest={str(manifest)!r}, of whose 10 images 1 are not there, for "
        f"{str(directory)!r}: 3.png. Scan it anew"
    )


def test_manifest_of_another_folder_is_refused(tmp_path):
    _, manifest = scanned(tmp_path)
    other = write(tmp_path / "other", {"x.png": PNG})
    with pytest.raises(ValueError, match="of whose 10 images 10 are not there"):
        folders.ImageFolder(other, manifest=manifest, unreadable_limit=0.9)


@pytest.mark.fault(75)
@pytest.mark.parametrize("path", ["../secret.png", "/etc/x.png", "a/../../b"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, path):
    directory, manifest = scanned(tmp_path)
    write(tmp_path, {"secret.png": PNG})
    table = pq.read_table(manifest).to_pylist()
    table[0]["path"] = path.encode()
    pq.write_table(pa.Table.from_pylist(table, manifests.schema()), manifest)
    with pytest.raises(ValueError, match="1 lead out of it"):
        folders.ImageFolder(directory, manifest=manifest, unreadable_limit=1)
