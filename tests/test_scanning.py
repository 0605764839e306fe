import functools
import os
import pathlib
import struct
import sys
import warnings
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from helpers.pictures import (
    JPEG,
    PNG,
    encoded,
    picture,
    refuse,
    tiff,
    write,
)
from PIL import Image
from sklearn import datasets

from keras_simclr import decoding, folders, scanning


def png_that_claims(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = encoded(picture(0), "PNG")
    return data[:8] + head + data[8 + len(head) :]


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def rows_of(directory, manifest):
    report = scanning.scan(directory, manifest)
    table = pq.read_table(manifest)
    return report, {os.fsdecode(row["path"]): row for row in table.to_pylist()}


PROGRESSIVE = encoded(picture(1, 300, 200), "JPEG", progressive=True)


GREY_16 = Image.fromarray(np.arange(1600, dtype="uint16").reshape(40, 40) * 40)


XRAY = Image.fromarray(np.arange(1600, dtype="uint16").reshape(40, 40) + 999)


def behind_a_comment(jpeg):
    """A JPEG with a comment in front of its first segment."""
    return jpeg[:2] + b"\xff\xfe\0\6text" + jpeg[2:]


FRAMES = {"save_all": True, "append_images": [picture(4), picture(5)]}


# File: content, and the problem that makes it unusable.
PROBLEMS = {
    "empty.jpg": (b"", "empty"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "truncated: "),
    "cut_progressive.jpg": (PROGRESSIVE[:-900], "truncated: "),
    "cut.png": (PNG[: len(PNG) // 2], "truncated: "),
    "cut.gif": (encoded(picture(3), "GIF")[:-900], "truncated: "),
    "cut.bmp": (encoded(picture(3), "BMP")[:-900], "truncated: "),
    "cut.webp": (encoded(picture(3), "WEBP")[:-90], "corrupt: "),
    "cut_head.jpg": (JPEG[:30], "truncated: "),
    "cut_head.png": (PNG[:20], "truncated: "),
    "cut_head.gif": (b"GIF89a\1", "corrupt: its header is damaged"),
    "damaged.png": (
        PNG[:100] + bytes(60) + PNG[160:],
        "corrupt: ",
    ),
    "html.jpg": (b"\n<!DOCTYPE html><p>404", "not an image: HTML"),
    "drawing.png": (b"<?xml version='1.0'?><svg/>", "not an image: XML or SVG"),
    "text.jpg": (b"BM is how a text may begin", "not an image: text"),
    "zeros.jpg": (bytes(1000), "not an image: unknown content"),
    "dot.png": (encoded(picture(6, 1, 1), "PNG"), "too small: 1x1 pixels"),
    "line.png": (encoded(picture(6, 1, 300), "PNG"), "too small: 1x300 pixels"),
    "large.png": (png_that_claims(10_000, 9_000), "too large: 10000x9000 pix"),
    "bomb.png": (png_that_claims(16_000, 16_000), "too large: more than twice"),
    "floats.tif": (
        tiff(np.full((9, 9, 1), 300, "float32")),
        "unsupported format: TIFF of floats from 300 to 300, not in [0, 1]",
    ),
    "cut.tif": (encoded(picture(7), "TIFF")[:-900], "truncated: "),
    "phone.heic": (
        b"\0\0\0\x18ftypheic" + bytes(30),
        "no plug-in: HEIF. Install it with: pip install 'keras_simclr[f",
    ),
    "layers.jpg": (b"8BPS" + bytes(30), "unsupported format: PSD"),
    "new.jpg": (b"\xff\x0a" + bytes(30), "unsupported format: JPEG XL"),
}


def with_chunks(data, *chunks):
    """A PNG with these chunks behind its header."""
    return (
        data[:33]
        + b"".join(
            struct.pack(">I", len(x)) + kind + x + crc
            for kind, x, *crc in chunks
            for crc in [*crc, struct.pack(">I", zlib.crc32(kind + x))][:1]
        )
        + data[33:]
    )


LONG = zlib.compress(bytes(2 << 20))
NOISE_16 = np.random.default_rng(0).integers(0, 65536, (9, 10, 5), "uint16")


# File: content, remarks, channels and size.
REMARKS = {
    "plain.jpg": (JPEG, None, 3, (48, 32)),
    "plain.PNG": (PNG, None, 3, (300, 200)),
    "plain.bmp": (encoded(picture(10), "BMP"), None, 3, (48, 32)),
    "plain.webp": (encoded(picture(11), "WEBP"), None, 3, (48, 32)),
    "plain.gif": (encoded(picture(12), "GIF"), None, 3, (48, 32)),
    "text.png": (
        with_chunks(encoded(picture(31), "PNG"), (b"zTXt", b"a\0\0" + LONG)),
        None,
    ),
    "texts.png": (
        with_chunks(
            encoded(picture(32), "PNG"),
            (b"tEXt", b"a\0" + b"b" * (2 << 20)),
            (b"iTXt", b"a\0\1\0\0\0" + LONG),
        ),
        None,
    ),
    "profile.png": (
        with_chunks(encoded(picture(33), "PNG"), (b"iCCP", b"a\0\0" + LONG)),
        None,
    ),
    "notes.png": (
        with_chunks(encoded(picture(34), "PNG"), (b"tEXt", b"a", b"none")),
        None,
    ),
    "profile.jpg": (
        encoded(picture(35), "JPEG", icc_profile=bytes(2 << 20)),
        None,
    ),
    "moving.png": (encoded(picture(36), "PNG", **FRAMES), "animated"),
    "plain.tiff": (encoded(picture(37), "TIFF"), None, 3, (48, 32)),
    "pages.tif": (encoded(picture(38), "TIFF", **FRAMES), "animated"),
    "deep.tif": (tiff(NOISE_16[..., :3]), "16-bit", 3, (10, 9)),
    "bands.tif": (
        tiff(NOISE_16[::-1], extra=0),
        "more channels: 5; 16-bit",
        5,
        (10, 9),
    ),
    "turned.tif": (
        tiff(np.asarray(picture(39)), orientation=6),
        "EXIF rotation",
        3,
        (32, 48),
    ),
    "clear.tif": (
        encoded(picture(40).convert("RGBA"), "TIFF"),
        "transparency",
        4,
        (48, 32),
    ),
    "plain.avif": (encoded(picture(41), "AVIF"), None, 3, (48, 32)),
    "plain.jp2": (encoded(picture(42), "JPEG2000"), None, 3, (48, 32)),
    "plain.jfif": (encoded(picture(43), "JPEG"), None, 3, (48, 32)),
    "smallest.png": (encoded(picture(13, 8, 8), "PNG"), None, 3, (8, 8)),
    "grey.jpg": (encoded(picture(14).convert("L"), "JPEG"), None, 1, (48, 32)),
    "bits.png": (encoded(picture(15).convert("1"), "PNG"), None, 1, (48, 32)),
    "is_png.jpg": (encoded(picture(16), "PNG"), "wrong extension: PNG"),
    "is_jpeg": (encoded(picture(17), "JPEG"), "wrong extension: JPEG"),
    "moving.gif": (encoded(picture(18), "GIF", **FRAMES), "animated"),
    "moving.webp": (encoded(picture(19), "WEBP", **FRAMES), "animated"),
    "print.jpg": (
        encoded(picture(20).convert("CMYK"), "JPEG"),
        "CMYK",
        4,
        (48, 32),
    ),
    "deep.png": (encoded(GREY_16, "PNG"), "16-bit", 1, (40, 40)),
    "x-ray.png": (
        encoded(XRAY, "PNG"),
        "16-bit: 12 bits in use",
        1,
        (40, 40),
    ),
    "turned.png": (
        encoded(picture(29), "PNG", exif=exif(8)),
        "EXIF rotation",
        3,
        (32, 48),
    ),
    "behind_a_comment.jpg": (
        behind_a_comment(encoded(picture(30), "JPEG", exif=exif(5))),
        "EXIF rotation",
        3,
        (32, 48),
    ),
    "palette.png": (encoded(picture(21).convert("P"), "PNG"), "palette"),
    "clear.png": (
        encoded(picture(22).convert("RGBA"), "PNG"),
        "transparency",
        4,
        (48, 32),
    ),
    "turned.jpg": (
        encoded(picture(23), "JPEG", exif=exif(6)),
        "EXIF rotation",
        3,
        (32, 48),
    ),
    "upside_down.jpg": (
        encoded(picture(24), "JPEG", exif=exif(3)),
        "EXIF rotation",
        3,
        (48, 32),
    ),
    "nonsense.jpg": (
        encoded(picture(25), "JPEG", exif=exif(77)),
        None,
        3,
        (48, 32),
    ),
    "damaged_exif.jpg": (
        encoded(picture(26), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40),
        None,
        3,
        (48, 32),
    ),
    "several.png": (
        encoded(picture(27).convert("RGBA"), "GIF", **FRAMES),
        "wrong extension: GIF; animated",
    ),
    "stereo.jpg": (encoded(picture(28), "MPO", **FRAMES), None, 3, (48, 32)),
}


# Of one photograph.
COPIES = ("a.png", "b.jpg", "c.jpg", "d.webp", "e.jpg")


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """The report and the rows of a directory with everything in it."""
    directory = tmp_path_factory.mktemp("everything")
    files = {**PROBLEMS, **REMARKS, "notes.txt": (b"BM: text",), "x": (b"",)}
    write(directory, {path: data for path, (data, *_) in files.items()})
    os.mkfifo(directory / "fifo.jpg")
    os.mkfifo(directory / "fifo")
    (directory / "link.jpg").symlink_to("nowhere")
    manifest = tmp_path_factory.mktemp("out") / "new" / "manifest.parquet"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setitem(sys.modules, "pillow_heif", None)
        warnings.simplefilter("error")
        return directory, *rows_of(directory, manifest)


@pytest.mark.fault(35, 39, 40, 41)
@pytest.mark.parametrize("path", PROBLEMS)
def test_scan_says_why_a_file_is_unusable(path, scanned):
    row = scanned[2][path]
    assert row["problem"].startswith(PROBLEMS[path][1])
    assert not row["usable"]


@pytest.mark.fault(31, 38, 42)
@pytest.mark.parametrize("path", REMARKS)
def test_scan_says_what_is_special_about_an_image(path, scanned):
    row = scanned[2][path]
    _, remark, *rest = REMARKS[path]
    assert row["problem"] == remark
    assert row["usable"]
    if rest:
        found = row["channels"], (row["width"], row["height"])
        assert found == tuple(rest)


@pytest.mark.fault(39, 40)
def test_what_scan_calls_usable_is_found_and_read_and_nothing_else(
    scanned, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    directory, _, rows = scanned
    found = folders.find_images(directory)
    listed = {path for path, row in rows.items() if row["format"]}
    assert listed <= {*found} <= rows.keys()
    for path in found:
        row, contents = rows[path], (directory / path).read_bytes()
        channels = row["channels"] if path == "bands.tif" else 3
        try:
            shape = decoding.decode(contents, 512, channels).shape
        except Exception:
            assert not row["usable"], path
        else:
            assert row["usable"], path
            assert shape == (row["height"], row["width"], channels)
            opened = functools.partial((directory / path).open, "rb")
            assert scanning.examine(path, opened, channels).usable
    with pytest.raises((tf.errors.OpError, ValueError), match="where 3 are"):
        decoding.decode((directory / "bands.tif").read_bytes(), 512)
    opened = functools.partial((directory / "bands.tif").open, "rb")
    row = scanning.examine("bands.tif", opened, 3)
    assert row.problem == "other channels: 5, where 3 are asked for"


@pytest.mark.fault(75)
def test_scan_opens_no_fifo_and_follows_no_link_to_nothing(scanned):
    *_, rows = scanned
    assert rows["fifo.jpg"]["problem"] == "not a regular file"
    assert rows["link.jpg"]["problem"] == (
        "broken link: No such file or directory"
    )


def test_manifest_has_a_row_per_candidate_sorted(scanned):
    *_, rows = scanned
    expected = {*PROBLEMS, *REMARKS, "fifo.jpg", "link.jpg"}
    assert list(rows) == sorted(expected)


def test_manifest_tells_formats_and_orientations(scanned):
    *_, rows = scanned
    formats = {rows[path]["format"] for path in REMARKS}
    assert formats == {*decoding.FORMATS} - {"HEIF"}
    assert rows["turned.jpg"]["orientation"] == 6
    assert rows["nonsense.jpg"]["orientation"] == 1
    assert rows["damaged_exif.jpg"]["orientation"] == 1
    assert rows["html.jpg"]["format"] is None


def test_different_images_and_unusable_files_are_in_no_group(scanned):
    _, report, rows = scanned
    groups = [row["group"] for row in rows.values()]
    assert len(set(groups)) == len(groups)
    assert report.duplicate_groups == 0


def test_report_is_what_a_person_can_act_on(tmp_path):
    files = {
        "cat/1.jpg": JPEG,
        "cat/2.jpg": JPEG,
        "dog/1.png": PNG,
        "dog/2.jpg": encoded(picture(1, 8, 9), "PNG"),
        **{f"dog/gone{number}.jpg": b"" for number in range(4)},
        "dog/words.txt": b"words",
    }
    directory = write(tmp_path, files)
    report = scanning.scan(directory, tmp_path / "manifest.parquet")
    assert str(report) == (
        "4 images usable, 4 files left out, 1 other file.\n"
        "Formats: JPEG 2, PNG 2.\n"
        "Sizes: smallest 8x9, median 48x32, largest 300x200 "
        "(width x height).\n"
        "Classes: 2 folders: cat, dog.\n"
        "Duplicates: 2 images in 1 group.\n"
        "Left out:\n"
        "  empty: 4. Copy or download it again.\n"
        "    'dog/gone0.jpg', 'dog/gone1.jpg', 'dog/gone2.jpg', ...\n"
        "Used, but worth knowing:\n"
        "  wrong extension: 1. Nothing to do: the content decides.\n"
        "    'dog/2.jpg'"
    )


def test_report_gives_advice_on_every_kind(scanned):
    text = str(scanned[1])
    others = {"unreadable", "unreadable folder", "other channels"}
    others |= {"NaN or infinity", "out of range", "one value"}  # Of arrays.
    others |= {"no samples", "not a sound", "silent", "clipped"}  # Of sounds.
    for kind in {*scanning._ADVICE} - others:
        assert f"  {kind}: " in text


@pytest.mark.fault(76)
def test_report_can_be_printed_whatever_the_names(tmp_path):
    write(
        tmp_path, {os.fsdecode(b"\xff/\xfe.jpg"): b"", "new\nline/2.png": PNG}
    )
    write(tmp_path, {os.fsdecode(b"\xff/2.png"): JPEG})
    text = str(scanning.scan(tmp_path, tmp_path / "manifest.parquet"))
    assert text.encode("utf-8")
    assert "Classes: 2 folders: new\\nline, \\udcff." in text


def test_scan_finds_copies_resized_and_saved_again(tmp_path):
    files = {}
    for name in ("china.jpg", "flower.jpg"):
        photo = Image.fromarray(datasets.load_sample_image(name))
        half = photo.resize((320, 214), 1)
        turned = half.transpose(Image.Transpose.ROTATE_90)
        files |= {
            f"{name}/a.png": encoded(half, "PNG"),
            f"{name}/b.jpg": encoded(photo, "JPEG", quality=30),
            f"{name}/c.jpg": encoded(half, "JPEG", quality=50),
            f"{name}/d.webp": encoded(photo.resize((160, 107), 1), "WEBP"),
            f"{name}/e.jpg": encoded(turned, "JPEG", exif=exif(6)),
        }
        mirrored = half.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        files[f"mirrored/{name}"] = encoded(mirrored, "JPEG")
    manifest = tmp_path / "manifest.parquet"
    report, rows = rows_of(write(tmp_path, files), manifest)
    for name in ("china.jpg", "flower.jpg"):
        groups = {rows[f"{name}/{c}"]["group"] for c in COPIES}
        assert len(groups) == 1
    assert report.duplicate_groups == 2
    assert report.duplicate_images == 10


def test_scan_reads_depth_and_orientation_as_training_does(tmp_path):
    photo = Image.fromarray(datasets.load_sample_image("china.jpg"))
    grey = photo.resize((320, 214), 1).convert("L")
    deep = np.asarray(grey).astype("uint16")
    sideways = grey.transpose(Image.Transpose.ROTATE_90)
    xray = Image.fromarray(np.asarray(sideways).astype("uint16") * 16 + 7)
    files = {
        "8.png": encoded(grey, "PNG"),
        "8_of_16.png": encoded(Image.fromarray(deep), "PNG"),
        "12.png": encoded(Image.fromarray(deep * 16 + 3), "PNG"),
        "16.png": encoded(Image.fromarray(deep * 257), "PNG"),
        "turned.png": encoded(xray, "PNG", exif=exif(6)),
    }
    _, rows = rows_of(write(tmp_path, files), tmp_path / "m.parquet")
    assert len({row["group"] for row in rows.values()}) == 1
    for path, row in rows.items():
        shape = decoding.decode((tmp_path / path).read_bytes(), 512).shape
        assert (row["height"], row["width"], 3) == shape


def test_flat_images_and_line_art_are_no_duplicates(tmp_path):
    files = {}
    for shade in range(0, 256, 15):
        flat = Image.new("RGB", (40, 30), (shade, 200, 200))
        files[f"flat{shade}.png"] = encoded(flat, "PNG")
        files[f"flat{shade}.jpg"] = encoded(flat, "JPEG")
        line = Image.new("L", (64, 64), 255)
        line.paste(0, (4, 4 + shade // 5, 60, 6 + shade // 5))
        files[f"line{shade}.png"] = encoded(line, "PNG")
    report = scanning.scan(write(tmp_path, files), tmp_path / "m.parquet")
    assert report.images == len(files)
    assert report.duplicate_groups == 0


def test_scan_changes_nothing_but_writes_the_manifest(tmp_path):
    directory = write(tmp_path / "data", {"a.jpg": JPEG, "b/c.png": PNG[:99]})
    for path in (*directory.rglob("*"), directory):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot(directory)
    scanning.scan(directory, tmp_path / "out" / "manifest.parquet")
    assert snapshot(directory) == before
    names = sorted(path.name for path in tmp_path.rglob("*"))
    assert names == ["a.jpg", "b", "c.png", "data", "manifest.parquet", "out"]
    for path in (directory, directory / "b"):
        path.chmod(0o755)


def snapshot(directory):
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in (directory, *directory.rglob("*"))
    }


@pytest.mark.fault(57)
def test_scan_overwrites_nothing(tmp_path):
    manifest = tmp_path / "manifest.parquet"
    manifest.write_text("mine")
    with pytest.raises(FileExistsError) as raised:
        scanning.scan(tmp_path, manifest)
    assert str(raised.value) == (
        "`manifest` must be a new file: nothing is overwritten. "
        f"Received: manifest={str(manifest)!r}"
    )
    assert manifest.read_text() == "mine"


def test_failed_scan_leaves_no_manifest(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    directory = write(tmp_path / "data", {"a.jpg": JPEG})
    with pytest.raises(KeyboardInterrupt):
        scanning.scan(directory, tmp_path / "m.parquet", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_scan_tells_its_progress(tmp_path):
    write(tmp_path, {"a.jpg": JPEG, "b.txt": b"", "c.png": PNG})
    calls = []
    scanning.scan(
        tmp_path,
        tmp_path / "manifest.parquet",
        progress=lambda *done_and_total: calls.append(done_and_total),
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_scan_of_nothing_but_other_files_is_refused(tmp_path):
    write(tmp_path, {"a.txt": b"words"})
    manifest = tmp_path / "manifest.parquet"
    with pytest.raises(ValueError) as raised:
        scanning.scan(tmp_path, manifest)
    assert str(raised.value) == (
        "`directory` must hold images. Received: "
        f"directory={str(tmp_path)!r} with 1 other files"
    )
    assert not manifest.exists()


def test_scan_lists_what_it_may_not_read(tmp_path, monkeypatch):
    write(tmp_path, {"a.jpg": JPEG, "b.jpg": JPEG, "secret/c.jpg": JPEG})
    refuse(monkeypatch, (os, "scandir"), "secret")
    refuse(monkeypatch, (pathlib.Path, "open"), "b.jpg")
    _, rows = rows_of(tmp_path, tmp_path / "manifest.parquet")
    assert {path: row["problem"] for path, row in rows.items()} == {
        "a.jpg": None,
        "b.jpg": "unreadable: Permission denied",
        "secret": "unreadable folder: Permission denied",
    }
