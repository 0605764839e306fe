import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

import keras_simclr_cli as cli
from keras_simclr import array_files, fit_data, recipe, sources

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 9, 4), "uint8")


def save(path, images, labels=None, *, compressed=False):
    if path.suffix == ".npy":
        np.save(path, images)
    else:
        write = np.savez_compressed if compressed else np.savez
        labels = {} if labels is None else {"labels": labels}
        write(path, images=images, **labels)
    return str(path)


@pytest.mark.parametrize("name", ["a.npz", "compressed.npz", "a.npy"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_as_they_were_saved(tmp_path, name, order):
    images = np.asarray(PIXELS, order=order)
    labels = None if name == "a.npy" else np.arange(12)
    path = save(tmp_path / name, images, labels, compressed="c" in name)
    arrays = array_files.load_arrays(path)
    np.testing.assert_array_equal(arrays["images"], PIXELS)
    assert not arrays["images"].flags.writeable
    assert isinstance(arrays["images"], np.memmap) == (name[0] == "a")
    assert ("labels" in arrays) == (labels is not None)
    for shuffle in (False, True):
        dataset = sources.open_dataset(
            path, "train[2:]", batch_size=5, shuffle=shuffle
        )
        batches = [x if labels is None else x[0] for x in dataset]
        assert batches[0].shape == (5, 8, 9, 4)
        found = np.concatenate(batches)
        if not shuffle:
            np.testing.assert_array_equal(found, PIXELS[2:])
    assert sources.in_words(path).startswith("12 images")


def test_arrays_of_other_byte_orders_are_read(tmp_path):
    path = save(tmp_path / "a.npy", (PIXELS / 255).astype(">f4"))
    path = str(pathlib.Path(path).rename(tmp_path / "A.NPY"))
    (batch,) = sources.open_dataset(path, batch_size=12, shuffle=False)
    np.testing.assert_allclose(batch, PIXELS / 255, rtol=1e-6)


def test_arrays_are_read_once_while_they_are_in_use(tmp_path):
    path = save(tmp_path / "a.npz", PIXELS, compressed=True)
    first = array_files.load_arrays(path)["images"]
    assert np.shares_memory(first, array_files.load_arrays(path)["images"])
    save(tmp_path / "a.npz", PIXELS[::-1])
    second = array_files.load_arrays(path)["images"]
    np.testing.assert_array_equal(second, PIXELS[::-1])


def cut_in_place(path):
    """What is mapped of it must not be read: that would end the process."""
    os.truncate(path, 500)


def written_over(path):
    with path.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(bytes(9))


@pytest.mark.fault(40)
@pytest.mark.parametrize("change", [cut_in_place, written_over])
@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_arrays_that_are_written_into_are_refused(tmp_path, name, change):
    path = tmp_path / name
    dataset = sources.open_dataset(
        save(path, PIXELS), "train[1:]", batch_size=3, shuffle=True
    )
    assert len(list(fit_data.checked_elements(dataset))) == 3
    os.utime(path, ns=(0, 0))  # Clocks may be coarse.
    dataset = sources.open_dataset(
        str(path), "train[1:]", batch_size=3, shuffle=True
    )
    change(path)
    with pytest.raises(ValueError) as error:
        list(fit_data.checked_elements(dataset))
    assert str(error.value) == (
        "A file of arrays must stay as it is while it is read. Received: "
        f"{str(path)!r}, which was written into. Begin or go on, and write to "
        "another file, which then takes its name"
    )


@pytest.mark.parametrize("replace", [True, False])
def test_arrays_whose_file_is_replaced_or_gone_stay(tmp_path, replace):
    path = tmp_path / "a.npz"
    dataset = sources.open_dataset(
        save(path, PIXELS), batch_size=12, shuffle=False
    )
    if replace:
        save(tmp_path / "b.npz", PIXELS[::-1])
        (tmp_path / "b.npz").replace(path)
    else:
        path.unlink()
    (batch,) = dataset
    np.testing.assert_array_equal(batch, PIXELS)


def test_grey_images_get_a_channel(tmp_path):
    path = save(tmp_path / "a.npz", PIXELS[..., 0], np.arange(12) % 2)
    assert array_files.load_arrays(path)["images"].shape == (12, 8, 9, 1)
    assert sources.in_words(path) == (
        "12 grey images of 2 classes: 0 (6), 1 (6)"
    )


def encrypted(path):
    """The flag of encryption, in both headers."""
    contents = bytearray(path.read_bytes())
    contents[6] |= 1
    contents[contents.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(contents)


def flip(path, place):
    contents = bytearray(path.read_bytes())
    contents[place] ^= 255
    path.write_bytes(contents)


@pytest.mark.fault(55)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:300]),
        lambda path: path.write_bytes(b"text" * 99),
        lambda path: path.write_bytes(pickle.dumps(PIXELS)),
        lambda path: flip(path, 300),
        encrypted,
    ],
)
def test_broken_files_are_refused_in_a_sentence(tmp_path, spoil, compressed):
    path = tmp_path / "a.npz"
    save(path, PIXELS, compressed=compressed)
    spoil(path)
    with pytest.raises(ValueError) as info:
        recipe.Data(data=str(path)).open_in_order(8)
    assert str(info.value).startswith(
        "A file of arrays must be whole, as np.savez and np.save write it. "
        f"Received: {str(path)!r} ("
    )
    assert str(info.value).endswith("). Copy it again, or write it anew")


@pytest.mark.fault(55)
@pytest.mark.parametrize("size", [0, 5, 90, 3000])
def test_broken_npy_is_refused(tmp_path, size):
    path = tmp_path / "a.npy"
    save(path, PIXELS)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="Copy it again, or write it anew"):
        array_files.load_arrays(path)


def test_other_members_of_an_archive_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=PIXELS, y_train=np.arange(12))
    with pytest.raises(ValueError) as info:
        array_files.load_arrays(path)
    assert str(info.value) == (
        "A file of arrays must hold `images`, and may hold `labels`. Received: "
        f"{str(path)!r} with x_train, y_train. Write it anew: np.savez(path, "
        "images=..., labels=...)"
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", "no array")
    with pytest.raises(ValueError, match=r"magic string is not correct.*Copy"):
        array_files.load_arrays(path)


OBJECTS = np.empty(2, object)
OBJECTS[:] = [PIXELS[0], PIXELS[1, :5]]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (PIXELS[:0], "at least one image"),
        (PIXELS[:, 0, 0], "`images` of shape (12, 4), which are no images"),
        (PIXELS[0, 0, 0, 0], "`images` of shape (), which are no images"),
        (PIXELS[None], "which are no images"),
        (OBJECTS, "np.stack(images), once all are of one size; or save them"),
        (np.zeros((5, 3, 32, 32), "uint8"), "np.moveaxis(images, 1, -1)"),
        (np.zeros((5, 1, 28, 28), "uint8"), "np.moveaxis(images, 1, -1)"),
        (np.zeros((5, 12, 64, 64), "uint8"), "np.moveaxis(images, 1, -1)"),
        (np.zeros((5, 7, 7, 3), "uint8"), "at least 8 pixels a side"),
        (PIXELS.astype("int64"), 'images = images.astype("uint8")'),
        (PIXELS.astype("uint16") * 257, "images = (images / 65535).astype"),
        (PIXELS.astype("float64"), "images = (images / 255).astype("),
        (PIXELS / 127.5 - 1, "images = ((images + 1) / 2).astype("),
        (PIXELS > 9, 'images = images.astype("uint8") * 255'),
        (PIXELS.astype("int64") - 300, "images = (images - images.min()) /"),
        (PIXELS.astype("longdouble"), "uint8 images, or floats in [0, 1]"),
        (PIXELS.astype("complex64"), "`images` of dtype complex64"),
        (PIXELS.astype("S2"), "`images` of dtype |S"),
    ],
)
def test_wrong_images_are_refused_with_the_cure(tmp_path, images, said):
    path = save(tmp_path / "a.npz", images)
    with pytest.raises(ValueError) as info:
        array_files.load_arrays(path)
    assert str(info.value).startswith("A file of arrays must hold ")
    assert f"Received: {path!r} with " in str(info.value)
    assert said in str(info.value)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(11), "as many labels as images"),
        (np.int64(3), "as many labels as images"),
        (np.array([1, "a"] * 6, object), "labels = np.array(labels.tolist())"),
    ],
)
def test_wrong_labels_are_refused_with_the_cure(tmp_path, labels, said):
    path = save(tmp_path / "a.npz", PIXELS, labels)
    with pytest.raises(ValueError) as info:
        array_files.load_arrays(path)
    assert said in str(info.value)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
def test_usual_images_are_taken(tmp_path, dtype):
    scale = 1 if dtype == "uint8" else 255
    path = save(tmp_path / "a.npy", (PIXELS / scale).astype(dtype))
    assert array_files.load_arrays(path)["images"].dtype == dtype


def test_files_of_arrays_can_be_scanned(tmp_path):
    images = (PIXELS / 255).astype("float32")
    images[3], images[4, 2, 2, 1], images[5, 0, 0, 0] = 0.5, np.nan, 2.0
    images[7] = images[6]
    path, out = save(tmp_path / "a.npy", images), tmp_path / "out"
    report = sources.scan_source(path, out / "manifest.parquet")
    assert str(report) == (
        "10 images usable, 2 files left out, 0 other files.\n"
        "Formats: array 10.\n"
        "Sizes: smallest 9x8, median 9x8, largest 9x8 (width x height).\n"
        "Duplicates: 2 images in 1 group.\n"
        "Left out:\n"
        "  NaN or infinity: 1. Mend it, or take it out.\n"
        "    '04'\n"
        "  out of range: 1. Bring floats to [0, 1].\n"
        "    '05'\n"
        "Used, but worth knowing:\n"
        "  one value: 1. There is nothing to see in it: take it out.\n"
        "    '03'"
    )


def test_manifests_of_arrays_are_refused(tmp_path):
    path = save(tmp_path / "a.npy", PIXELS)
    for data in (path, "tfds:mnist"):
        with pytest.raises(ValueError, match="`manifest` is of image files"):
            recipe.Data(data=data, manifest="m.parquet").open_in_order(8)


def test_commands_say_what_is_wrong_with_arrays(tmp_path, capsys):
    np.save(tmp_path / "a.npy", PIXELS.astype("int32"))
    (tmp_path / "a.npz").write_bytes(b"")
    for name, said in (("a.npy", 'astype("uint8")'), ("a.npz", "Copy it")):
        for command in ("scan", "pretrain"):
            arguments = [
                f"--data={tmp_path / name}",
                f"--output_dir={tmp_path / 'out'}",
            ]
            assert cli.main([command, *arguments]) == 1
            error = capsys.readouterr().err
            assert said in error
            assert "Traceback" not in error
            assert not (tmp_path / "out").exists()


def test_headers_of_the_second_version_are_read(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array(file, PIXELS, version=(2, 0))
    (tmp_path / "a.npy").write_bytes(file.getvalue())
    arrays = array_files.load_arrays(tmp_path / "a.npy")
    np.testing.assert_array_equal(arrays["images"], PIXELS)


def test_other_channels_are_refused_in_a_sentence(tmp_path):
    path = save(tmp_path / "a.npz", PIXELS)
    with pytest.raises(ValueError, match=r"^`channels` must be those of the i"):
        sources.open_dataset(path, channels=3, batch_size=4)


@pytest.mark.parametrize("dtype", ["M8[D]", "c8"])
def test_labels_that_are_no_classes_are_refused(tmp_path, dtype):
    path = save(tmp_path / "a.npz", PIXELS, np.arange(12).astype(dtype))
    with pytest.raises(ValueError, match="labels that are numbers or texts"):
        array_files.load_arrays(path)
