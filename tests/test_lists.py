import pathlib

import numpy as np
import pytest
from helpers.pictures import PNG, write

from keras_simclr import lists, sources

IMAGES = ("a.png", "b/c, d.png", "e")


@pytest.fixture
def written(tmp_path):
    """Writes a list beside some images."""
    write(tmp_path, dict.fromkeys(IMAGES, PNG))

    def write_list(text):
        contents = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "list.csv").write_bytes(contents)
        return str(tmp_path / "list.csv")

    return write_list


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lists_name_paths_and_labels(written, tmp_path, mark):
    text = (
        f'note, path ,label\r\n,e, cat \r\n"x\ny","b/c, d.png",ö\r\n'
        f"\r\n,{tmp_path}/a.png,\r\n"
    )
    path = written(mark + text.encode())
    source = sources.find_source(pathlib.Path(path).rename(f"{path[:-3]}CSV"))
    assert source.paths == sorted([f"{tmp_path}/a.png", "b/c, d.png", "e"])
    labels = dict(zip(source.paths, source.labels.tolist(), strict=True))
    assert list(labels.values()) == [-1, 1, 0]
    assert source.class_names == ("cat", "ö")
    assert sources.in_words(source) == ("3 images of 2 classes: cat (1), ö (1)")
    for place in range(3):
        assert source._reader()(place).numpy() == PNG
        with source.open_image(place) as file:
            assert file.read() == PNG


def test_lists_need_no_labels(written):
    for text in ("path\na.png\ne\n", "path,label\na.png,\ne,\n"):
        source = lists.ImageList(written(text))
        assert (source.labels, source.class_names) == (None, ())
    source = lists.ImageList(written("path,label\na.png,7\ne\n"))
    np.testing.assert_array_equal(source.labels, [0, -1])
    assert source.class_names == ("7",)


def test_paths_that_stand_there_twice_count_once(written):
    source = lists.ImageList(written("path,label\na.png,x\ne,y\n./a.png,x\n"))
    assert source.paths == ["a.png", "e"]
    assert sources.in_words(source).endswith(
        "1 other file is not read: 1 named twice"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "with the columns none"),
        ("a.png\ne\n", "with the columns a.png"),
        ("path;label\na.png;x\n", "with the columns path;label"),
        ("path,label\n", "no row below the first line"),
        ("path\nz.png\na.png\n", "1 of 2 that are not there: z.png"),
        ("path\n.\n", "1 of 1 that are not there: ."),
        (
            "path\n" + "".join(f"{x}.png\n" for x in range(11)),
            "8.png, 9.png, ...",
        ),
        (
            "path,label\na.png,x\na.png,y\n",
            "with 'a.png' as 'x', and in line 3 as 'y'",
        ),
        ("path,label\na.png,x\na.png,\n", "with 'a.png' as 'x', and in line 3"),
        ("path\nb/c, d.png\n", "2 in line 2, 1 in the first"),
        ("path,label\n,x\n", "none in line 2"),
        ("label,path\nx\n", "none in line 2"),
        (f"path\n{'x' * 300}\n", "1 of 1 that are not there: xxx"),
        (b"path\n\xe9.png\n", "can't decode byte"),
        ('path\n"a.png\n', "unexpected end of data"),
        (b"PK\x03\x04\x00\xff", "can't decode byte"),
    ],
)
def test_wrong_lists_are_refused(written, text, said):
    path = written(text)
    with pytest.raises(ValueError) as info:
        sources.find_source(path, kind="images")
    assert str(info.value).startswith("The list of images must have ")
    assert f"Received: {path!r} with " in str(info.value)
    assert said in str(info.value)


def test_a_list_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        sources.find_source(str(tmp_path / "list.csv"))
