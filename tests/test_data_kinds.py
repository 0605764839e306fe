import numpy as np
import pytest

from keras_simclr import kind_recipes, kinds, recipe, sources
from keras_simclr.data_kinds import kind_of_data, kind_of_source


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a.jpg", "b.png"], kinds.IMAGES),
        (["a.wav", "b/c.FLAC"], kinds.AUDIO),
        (["a.wav", "b.mp3", "cover.jpg"], kinds.AUDIO),
        (["a.wav", "b.jpg", "c.jpg"], kinds.IMAGES),
        (["a.txt"], kinds.IMAGES),  # What reads it says that there is none.
        ([], kinds.IMAGES),
    ],
)
def test_most_files_of_a_folder_tell_its_kind(names, kind, tmp_path):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert kind_of_data(str(tmp_path)) is kind
    assert kind_of_data(str(tmp_path), "audio") is kinds.AUDIO


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("path,label\na.jpg,x\n", kinds.IMAGES),
        ("label, path\nx,a.ogg\n", kinds.AUDIO),
        ("path\n", kinds.IMAGES),
        ("age,colour\n3,red\n", kinds.TABLES),
        ('path\n"a.jpg\n', kinds.IMAGES),
    ],
)
def test_columns_tell_a_list_of_files_from_a_table(text, kind, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(text)
    assert kind_of_data(str(path)) is kind


def test_bytes_that_are_no_text_are_left_to_what_reads_them(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(b"\xff\xfe\x00")
    assert kind_of_data(str(path)) is kinds.IMAGES


def test_arrays_tell_by_their_names(tmp_path):
    path = str(tmp_path / "a.npz")
    np.savez(path, images=np.zeros((2, 8, 8, 1)))
    assert kind_of_data(path) is kinds.IMAGES
    np.savez(path, windows=np.zeros((2, 8, 1)))
    assert kind_of_data(path) is kinds.SERIES
    assert kind_of_data(str(tmp_path / "a.parquet")) is kinds.TABLES
    assert kind_of_data("tfds:mnist") is kinds.IMAGES


@pytest.mark.parametrize(
    "data", ["tar:a-{0..9}.tar", "parquet:data/a-*.parquet", "tfds:mnist"]
)
def test_what_has_a_prefix_holds_images_alone(data):
    assert kind_of_data(data) is kinds.IMAGES
    assert kind_of_data(data, "images") is kinds.IMAGES
    given = recipe.Data(data=data)
    chosen = kind_recipes.with_defaults(recipe.Recipe(), given, {"depth"})
    assert chosen == recipe.Recipe()
    for kind in ("audio", "series", "tables"):
        with pytest.raises(ValueError, match=f"images. Received: kind='{kind}"):
            sources.find_source(data, kind=kind)


def test_kinds_that_there_are_not_are_refused():
    for kind in ("audios", "other", None):
        with pytest.raises(ValueError, match="`kind` must be one of"):
            sources.find_source("photos", kind=kind)


def test_sources_have_a_kind_and_others_are_of_images():
    assert kind_of_source("tfds:mnist") is kinds.IMAGES
    assert kind_of_source(None) is kinds.IMAGES
