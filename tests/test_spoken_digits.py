import io
import re
import zipfile

import numpy as np
import pytest
import soundfile

from benchmarks.claims import spoken_digits

SPEAKERS = ("ann", "bob", "cy", "di", "ed", "flo")


@pytest.fixture
def data(tmp_path):
    """Two sounds of each digit by each speaker, the longest of 1.5 s."""
    path = tmp_path / "digits.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("LICENCE.txt", "free")
        for digit in range(10):
            for speaker in SPEAKERS:
                for number in range(2):
                    file = io.BytesIO()
                    length = 12_000 if digit == 9 else 800 * (digit + 1)
                    values = rng.normal(0, 0.1, length)
                    soundfile.write(file, values, 8000, format="WAV")
                    name = f"{digit}/{digit}_{speaker}_{number}.wav"
                    archive.writestr(name, file.getvalue())
    return spoken_digits.read_sounds(path)


def test_sounds_are_read_with_digit_and_speaker(data):
    sounds, sizes, labels, speakers = data
    assert sounds.shape == (120, 8000)
    assert sizes.shape == (120, 1)
    expected = np.where(labels == 9, 8000, 800 * (labels + 1))
    np.testing.assert_array_equal(sizes[:, 0], expected)
    behind = np.arange(8000) >= sizes
    assert not sounds[behind].any()
    assert set(speakers) == set(SPEAKERS)


def test_no_speaker_is_learned_from_and_tested_on(data):
    *_, speakers = data
    splits = list(spoken_digits.splits_of(speakers))
    assert len(splits) == 3
    tested = np.concatenate([split.test for split in splits])
    assert sorted(tested) == list(range(120))  # Each sound once.
    for split in splits:
        assert len(set(speakers[split.test])) == 2
        assert not set(speakers[split.test]) & set(speakers[split.train])
        assert len(split.train) + len(split.test) == 120


def test_row_tells_means_lead_and_interval():
    rng = np.random.default_rng(0)

    def texts(share):
        return [
            "".join(map(str, (rng.random(400) < share).astype(int)))
            for _ in range(3)
        ]

    runs = [
        {
            "right": {
                "10": {
                    "encoder": texts(0.8),
                    "logistic regression": texts(0.6),
                    "extra trees": texts(0.3),
                }
            }
        }
        for _ in range(5)
    ]
    ours, theirs, trees, lead, _ = spoken_digits.row_of(runs, "10")
    assert abs(float(ours.split(" ")[0]) - 80) < 2
    assert abs(float(theirs.split(" ")[0]) - 60) < 2
    assert abs(float(trees.split(" ")[0]) - 30) < 2
    mean, low, high = map(float, re.findall(r"[+-][\d.]+", lead))
    assert abs(mean - 20) < 2
    assert 12 < low < mean < high < 28
