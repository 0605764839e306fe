import io
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile

import keras_simclr as simclr
from keras_simclr import audio, lists, sources
from keras_simclr.folders import ImageFolder
from keras_simclr.sounds import SoundFolder, SoundList, read_sound

RATE = 8000


def tone(seconds=0.1, rate=RATE, hertz=440.0, level=0.5):
    times = np.arange(round(seconds * rate)) / rate
    return level * np.sin(2 * np.pi * hertz * times)


def encoded(values, rate=RATE, **kwargs):
    file = io.BytesIO()
    soundfile.write(file, values, rate, **{"format": "WAV", **kwargs})
    return file.getvalue()


def write(directory, files):
    for name, contents in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(contents)
    return directory


@pytest.fixture
def folder(tmp_path):
    """Twelve sounds of two classes, in four formats and of many lengths."""
    formats = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "MP3": "MP3"}
    files = {}
    for number in range(12):
        name = ["high", "low"][number % 2]
        extension = [*formats][number % 4]
        values = tone(0.05 + 0.01 * number, hertz=[900, 200][number % 2])
        contents = encoded(values, format=formats[extension])
        files[f"{name}/{number:02}.{extension}"] = contents
    return write(tmp_path / "sounds", files)


def read(contents, rate=RATE, seconds=1.0):
    return read_sound(io.BytesIO(contents), rate, seconds)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8"])
def test_sound_is_read_as_it_is(subtype):
    found = read(encoded(tone(), subtype=subtype))
    atol = {"PCM_U8": 1e-2, "PCM_16": 1e-4}.get(subtype, 1e-6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, tone(), atol=atol)


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3"])
def test_compressed_sound_is_read(form):
    found = read(encoded(tone(0.3), format=form))
    spectrum = np.abs(np.fft.rfft(found))
    hertz = spectrum.argmax() * RATE / len(found)
    assert abs(hertz - 440) < 8
    assert abs(np.abs(found).max() - 0.5) < 0.05


def test_stereo_is_averaged():
    both = np.stack([tone(), 3 * tone(level=0.1)], axis=1)
    found = read(encoded(both, subtype="FLOAT"))
    np.testing.assert_allclose(found, both.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("rate", [4000, 11025, 16000, 44100])
def test_other_rates_are_resampled(rate):
    found = read(encoded(tone(0.5, rate), rate, subtype="FLOAT"))
    assert len(found) == 4000
    inside = slice(200, -200)
    np.testing.assert_allclose(found[inside], tone(0.5)[inside], atol=5e-3)


@pytest.mark.parametrize(("seconds", "first"), [(0.5, 2000), (0.25, 3000)])
def test_middle_of_a_long_sound_is_read(seconds, first):
    values = np.random.default_rng(0).uniform(-1, 1, 8000)
    found = read(encoded(values, subtype="FLOAT"), seconds=seconds)
    expected = values[first : first + round(RATE * seconds)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_hours_of_sound_do_not_fill_the_memory(tmp_path):
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for _ in range(30):
            file.write(np.zeros(RATE * 360, "int16"))  # Three hours in all.
    tracemalloc.start()
    with path.open("rb") as file:
        assert len(read_sound(file, RATE, 2.0)) == 2 * RATE
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1e6


def test_batches_are_like_those_of_images(folder):
    dataset = simclr.dataset_from_directory(
        folder, kind="audio", rate=RATE, seconds=0.5, batch_size=4
    )
    assert dataset.class_names == ["high", "low"]
    assert dataset.source.paths == sorted(dataset.source.paths)
    assert len(dataset) == 3
    seen = []
    for batch in dataset:
        assert batch["images"].shape == (4, 4000)
        assert batch["sizes"].shape == (4, 1)
        seen += batch["places"].numpy().tolist()
        for sound, (size,), label, place in zip(
            *[
                batch[name].numpy()
                for name in ("images", "sizes", "labels", "places")
            ],
            strict=True,
        ):
            path = dataset.source.paths[place]
            expected = read((folder / path).read_bytes())
            np.testing.assert_array_equal(sound[:size], expected)
            assert not sound[size:].any()
            assert path.startswith(["high", "low"][label])
    assert sorted(seen) == list(range(12))


def test_list_of_sounds_is_read_as_their_folder(folder, tmp_path):
    rows = [
        f"sounds/{path.parent.name}/{path.name},{path.parent.name}"
        for path in sorted(folder.glob("*/*"))
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    found = sources.find_source(
        tmp_path / "list.csv", kind="audio", rate=RATE, seconds=0.5
    )
    assert isinstance(found, SoundList)
    assert isinstance(found, lists.ImageList)
    others = SoundFolder(folder, rate=RATE, seconds=0.5)
    for one, other in zip(
        simclr.dataset_from_directory(found, batch_size=12),
        simclr.dataset_from_directory(others, batch_size=12),
        strict=True,
    ):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_part_of_a_folder_is_taken(folder):
    parts = [
        SoundFolder(folder, split=split)
        for split in ("train[:50%]", "train[50%:]")
    ]
    assert sorted(parts[0].paths + parts[1].paths) == SoundFolder(folder).paths
    assert sources.in_words(SoundFolder(folder)) == (
        "12 sounds of 2 classes: high (6), low (6)"
    )


BAD = {
    "nothing.wav": b"",
    "page.wav": b"<html>not found</html>",
    "empty.wav": encoded(np.zeros(0)),
    "nan.wav": encoded(np.full(99, np.nan), subtype="FLOAT"),
    "cut.flac": encoded(tone(1.0), format="FLAC")[:60],
}


def test_broken_files_are_skipped_listed_and_counted(folder, said):
    write(folder / "high", BAD)
    write(folder, {"notes.txt": b"hello", "cover.jpg": b"picture"})
    source = SoundFolder(folder, rate=RATE, unreadable_limit=0.5)
    dataset = simclr.dataset_from_directory(
        source, batch_size=4, drop_remainder=False, shuffle=False
    )
    places = np.concatenate([batch["places"] for batch in dataset])
    found = {source.paths[place] for place in places}
    assert found == {x for x in source.paths if x[5:] not in BAD}
    reasons = {x[5:]: y for x, y in source.skipped.items()}
    assert sorted(reasons) == sorted(BAD)
    assert reasons["nothing.wav"] == "empty"
    assert reasons["page.wav"].startswith("not a sound: ")
    assert str(folder) not in reasons["page.wav"]
    assert reasons["empty.wav"] == "no samples"
    assert reasons["nan.wav"] == "NaN or infinity"
    assert "Skipped 'high/nan.wav': NaN or infinity" in said.text
    assert source.not_read == {".jpg": 1, ".txt": 1}


def test_too_many_broken_files_are_an_error(folder):
    write(folder / "high", BAD)
    dataset = simclr.dataset_from_directory(
        folder, kind="audio", batch_size=4, shuffle=False
    )
    model = simclr.SimCLRModel(
        audio.default_encoder((98, 40), 0.1),
        augmentation=[audio.RandomTimeCrop(8000), audio.LogMel(RATE)],
    )
    with pytest.raises(ValueError, match=r"be unreadable\. Received: 1 of"):
        model.predict(dataset, verbose=0)


def test_scan_says_what_sounds_there_are(folder, tmp_path):
    write(folder / "high", BAD)
    loud = np.clip(4 * tone(0.2), -1, 1)
    write(
        folder / "low",
        {
            "silent.wav": encoded(np.zeros(800)),
            "loud.wav": encoded(loud),
            "copy.wav": (folder / "low/09.flac").read_bytes(),
        },
    )
    (folder / "low/lost.wav").symlink_to("nowhere")
    manifest = tmp_path / "sounds.parquet"
    scan = sources.scan_source(folder, manifest, kind="audio")
    text = str(scan)
    assert "15 sounds usable, 5 files left out, 0 other files." in text
    assert "Lengths: shortest 0.05, median " in text
    assert "Classes: 2 folders: high, low." in text
    assert "Duplicates: 2 sounds in 1 group." in text
    for line in (
        "empty: 1.",
        "not a sound: 2.",
        "no samples: 1.",
        "NaN or infinity: 1.",
        "silent: 1. There is nothing to hear in it",
        "clipped: 1.",
        "wrong extension: 1.",
    ):
        assert line in text
    source = SoundFolder(folder, manifest=manifest, rate=RATE, seconds=9.0)
    assert len(source.paths) == 15
    assert len(source.left_out) == 5
    longest = max(
        soundfile.info(folder / path).duration for path in source.paths
    )
    dataset = simclr.dataset_from_directory(source, batch_size=15)
    (batch,) = dataset
    assert batch["images"].shape[1] == np.ceil(longest * RATE)
    groups = batch["groups"].numpy()
    assert len(np.unique(groups)) == 14


def test_what_is_no_folder_of_sounds_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="read them with kind='audio'"):
        ImageFolder(folder)
    write(tmp_path / "images", {"a.jpg": b"1"})
    with pytest.raises(ValueError) as error:
        SoundFolder(tmp_path / "images")
    assert "`directory` must hold sounds (WAV, FLAC, OGG, MP3)" in str(
        error.value
    )
    for options, message in (
        ({"rate": 0}, "`rate` must be an integer of at least 1000"),
        ({"seconds": 0}, "`seconds` must be a positive number"),
        ({"unreadable_limit": 2}, "`unreadable_limit` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            SoundFolder(folder, **options)
    with pytest.raises(ValueError, match="`kind` must be one of"):
        simclr.dataset_from_directory(folder, kind="sound")
    with pytest.raises(ValueError, match="sounds"):
        simclr.dataset_from_directory(folder, kind="audio", batch_size=99)


def test_soundfile_is_named_where_it_is_not_installed(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_simclr\[audio"):
        SoundFolder(folder)


@pytest.mark.usefixtures("eagerly")
def test_model_learns_from_a_folder(folder):
    dataset = simclr.dataset_from_directory(
        folder, kind="audio", rate=RATE, seconds=0.2, batch_size=6
    )
    mel = audio.LogMel(RATE, 16)
    model = simclr.SimCLRModel(
        audio.default_encoder((8, 16), 0.1),
        augmentation=[audio.RandomTimeCrop(800), mel],
    )
    model.compile()
    model.fit(dataset, epochs=1, verbose=0)
    features, places = simclr.extract_features(
        model, dataset, return_places=True
    )
    assert features.shape == (12, model.encoder.output_shape[1])
    assert sorted(places) == list(range(12))
