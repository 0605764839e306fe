import csv

import keras
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest

import keras_simclr as simclr
from keras_simclr import embedding

pytestmark = pytest.mark.usefixtures("eagerly")

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), "uint8")
NAMES = ["a.png", "b,c.png", "d/é.png", 'e"f.png', "g\udcff.png"]
READABLE = [*NAMES[:4], "g\\xff.png"]


@pytest.fixture(scope="module")
def encoder():
    return keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.GlobalAveragePooling2D()]
    )


def write(encoder, path, names):
    dataset = simclr.dataset_from_arrays(
        IMAGES, batch_size=2, shuffle=False, drop_remainder=False
    )
    return embedding.write_embeddings(encoder, dataset, path, names)


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    first = int(head[0] == "path")
    assert head[first:] == ["h0", "h1", "h2"]
    values = np.array([row[first:] for row in rows], "float32")
    return [row[0] for row in rows] if first else None, values


def read_npz(path):
    with np.load(path) as arrays:
        names = arrays["paths"].tolist() if "paths" in arrays else None
        return names, arrays["representations"]


def read_parquet(path):
    table = pyarrow.parquet.read_table(path).to_pydict()
    return table.get("path"), np.array(table["representation"], "float32")


@pytest.mark.parametrize("names", [NAMES, None], ids=["names", "no names"])
@pytest.mark.parametrize("read", [read_csv, read_npz, read_parquet])
def test_table_has_a_row_per_image(encoder, tmp_path, read, names):
    path = tmp_path / f"table.{read.__name__.removeprefix('read_')}"
    assert write(encoder, path, names) == 5
    found, values = read(path)
    assert found == (READABLE if names else None)
    expected = (IMAGES / 255).mean(axis=(1, 2))
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_other_formats_are_refused(encoder, tmp_path):
    with pytest.raises(ValueError, match="`format` must be one of 'csv', 'np"):
        write(encoder, tmp_path / "table.json", NAMES)


@pytest.mark.parametrize(
    ("read", "skipped"),
    [
        (read_csv, [0]),
        (read_npz, [9]),
        (read_parquet, [2]),
        (read_csv, [3, 4, 5]),
        (read_npz, [1, 8]),
        (read_parquet, [1, 8]),
    ],
)
def test_rows_are_named_by_the_places_of_their_images(
    encoder, tmp_path, read, skipped
):
    """Whatever an earlier pass could not read, and this one can."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(10):
        pixels = np.full((8, 8, 3), 20 * number, "uint8")
        PIL.Image.fromarray(pixels).save(images / f"{number}.png")
    folder = simclr.folders.ImageFolder(images, unreadable_limit=0.5)
    dataset = simclr.dataset_from_directory(
        folder, batch_size=4, shuffle=False, drop_remainder=False
    )
    crop = simclr.RandomResizedCrop(4, 4)
    model = simclr.SimCLRModel(encoder, augmentation=crop)
    contents = {
        place: (images / f"{place}.png").read_bytes() for place in skipped
    }
    for number, broken in enumerate([skipped, [], skipped]):
        for place, content in contents.items():
            part = content[: 30 if place in broken else None]
            (images / f"{place}.png").write_bytes(part)
        path = tmp_path / f"{number}.{read.__name__.removeprefix('read_')}"
        embedding.write_embeddings(model, dataset, path, folder.paths)
        names, values = read(path)
        right = [x for x in range(10) if x not in broken]
        assert names == [f"{x}.png" for x in right]
        np.testing.assert_allclose(
            values[:, 0], np.array(right) * 20 / 255, atol=1e-6
        )


def test_tables_of_what_is_not_finite_are_not_written(encoder, tmp_path):
    inputs = keras.Input((4, 4, 3))
    scale = keras.layers.Rescaling(np.float32(1e38))
    outputs = encoder(scale(scale(inputs)))  # Finite weights, if any.
    with pytest.raises(ValueError) as error:
        write(keras.Model(inputs, outputs), tmp_path / "a.npz", NAMES)
    assert str(error.value).startswith(
        "Representations must be finite. Received: NaN or infinity for 2 of 2 "
        "images, such as 'a.png'. The training has diverged"
    )
    norm = keras.layers.BatchNormalization()
    network = keras.Model(inputs, norm(encoder(inputs)))
    norm.moving_mean.assign([0.0, np.nan, 0.0])
    with pytest.raises(ValueError, match="Weights must be finite"):
        write(network, tmp_path / "b.npz", NAMES)
    assert not (tmp_path / "b.npz").exists()


def test_tables_overwrite_nothing(encoder, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="`path` must be a new file"):
        write(encoder, path, NAMES)
    assert path.read_text() == "mine"
