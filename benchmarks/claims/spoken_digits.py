"""Spoken digits of unseen speakers: an encoder's lead over what needs none.

    python benchmarks/claims/spoken_digits.py --zip=free_spoken_digits.zip \
        [--draws=5] [--results=DIR]

The archive holds the WAV files of Jakobovski/free-spoken-digit-dataset, named
DIGIT_SPEAKER_NUMBER.wav: six speakers, 3,000 sounds at 8 kHz. Two speakers at a
time are tested on, in the order of their names, so three splits test each sound
once. All sounds are seen without labels, once for each draw; 10 or 50 of each
digit, or all, of the other four speakers with them. What learns from labels is
`simclr.linear_probe`, on the representations and on log-mel spectrograms that
are stretched to one length; and 300 extremely randomized trees on the latter.
The lead is that over the better of the two, paired by sound and draw, and its
interval is corrected for that choice; that other speakers would do the same,
six cannot tell.

No speaker is unseen by who chose: encoder, bands, shifts and epochs were chosen
on other pairs of the same six; after one look at these splits (56.8 % with 10
labels, the first draw) all sounds were brought to one level, for everybody, and
the baselines' spectrograms were stretched, which made them better.
"""

import io
import pathlib
import sys
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import keras
import numpy as np
import soundfile
from sklearn.ensemble import ExtraTreesClassifier

import keras_simclr as simclr
from benchmarks import results
from keras_simclr import audio, sampling

_RATE = 8_000
_LABELS = (10, 50, "all")
_LEVEL = 0.1  # Root of the mean square.
_STEPS = 40  # Of a spectrogram without an encoder.
_SAMPLES = 5_120  # Of a view, 0.64 s: nineteen of twenty sounds are shorter.
_BATCH, _EPOCHS = 250, 20
_ENCODER, _BASELINES = "encoder", ("logistic regression", "extra trees")


def read_sounds(path):
    """Sounds of up to a second, as loud as each other, padded; and the rest.

    That is their lengths, digits and speakers.
    """
    sounds, labels, speakers = [], [], []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".wav"):
                contents = io.BytesIO(archive.read(name))
                values, _ = soundfile.read(contents, dtype="float32")
                values = values[:_RATE]
                # Speakers are not equally loud, which baselines cannot know.
                values *= _LEVEL / np.sqrt(np.mean(values**2))
                sounds.append(values)
                digit, speaker, _ = pathlib.Path(name).stem.split("_")
                labels.append(int(digit))
                speakers.append(speaker)
    sizes = np.array([[len(sound)] for sound in sounds], "int32")
    padded = np.zeros((len(sounds), _RATE), "float32")
    for row, sound in zip(padded, sounds, strict=True):
        row[: len(sound)] = sound
    return padded, sizes, np.array(labels), np.array(speakers)


def splits_of(speakers):
    """Places of four speakers, and of the two others, three times."""
    names = np.unique(speakers)
    for first in range(0, len(names), 2):
        is_test = np.isin(speakers, names[first : first + 2])
        yield sampling.Split(np.flatnonzero(~is_test), np.flatnonzero(is_test))


def pretrained(sounds, sizes, seed):
    """A model that has seen all sounds, without labels."""
    keras.utils.set_random_seed(seed)
    layers = audio.default_augmentation(_SAMPLES, _RATE)
    crop, mel = layers[0], layers[5]
    mel.adapt(crop(sounds, training=False, sizes=sizes))
    shape = mel.compute_output_shape((None, _SAMPLES))
    encoder = audio.default_encoder(shape[1:])
    model = simclr.SimCLRModel(encoder, augmentation=layers, seed=seed)
    steps = _EPOCHS * (len(sounds) // _BATCH)
    model.compile(
        keras.optimizers.Adam(simclr.warmup_cosine(2e-3, steps)),
        simclr.NTXent(0.1),
    )
    model.fit(
        {"images": sounds, "sizes": sizes},
        batch_size=_BATCH,
        epochs=_EPOCHS,
        verbose=0,
    )
    return model


def log_mels(sounds, sizes):
    """What needs no encoder: log-mels, all stretched to one length, flat.

    Stretched they are told apart better by far than padded.
    """
    mel, rows = audio.LogMel(_RATE), []
    for spectrogram, (size,) in zip(mel(sounds).numpy(), sizes, strict=True):
        time = mel.compute_output_shape((int(size),))[0]
        steps = np.linspace(0, time - 1, _STEPS)
        bands = spectrogram[:time].T
        rows.append([np.interp(steps, np.arange(time), x) for x in bands])
    return np.reshape(np.float32(rows), (len(rows), -1))


def try_draw(data, draw):
    """For each number of labels and split, what is right and by whom."""
    sounds, sizes, labels, speakers = data
    model = pretrained(sounds, sizes, draw)
    encoded = model.predict({"images": sounds, "sizes": sizes}, verbose=0)
    plain = log_mels(sounds, sizes)
    found = {}
    for number, split in enumerate(splits_of(speakers)):
        targets, tested = labels[split.train], labels[split.test]
        for amount in _LABELS:
            rng = np.random.default_rng([draw, number, _LABELS.index(amount)])
            places = sampling.draw_labelled(targets, amount, rng)
            places = split.train[places]
            trees = ExtraTreesClassifier(300, random_state=draw)
            trees.fit(plain[places], labels[places])
            guesses = {
                name: simclr.linear_probe(
                    features[places],
                    labels[places],
                    features[split.test],
                    tested,
                    quick=True,
                ).predictions
                for name, features in (
                    (_ENCODER, encoded),
                    (_BASELINES[0], plain),
                )
            }
            guesses[_BASELINES[1]] = trees.predict(plain[split.test])
            for name, guessed in guesses.items():
                is_right = "".join(map(str, (guessed == tested).astype(int)))
                found.setdefault(str(amount), {}).setdefault(name, [])
                found[str(amount)][name].append(is_right)
    return {"right": found}


def right_of(runs, amount, name):
    """Whether each sound was told right: (draws, splits, sounds)."""
    return np.array(
        [
            [[float(x) for x in text] for text in run["right"][amount][name]]
            for run in runs
        ]
    )


def row_of(runs, amount):
    """Cells of the table: means over splits, lead, interval, each split."""
    right = {
        name: right_of(runs, amount, name) for name in (_ENCODER, *_BASELINES)
    }
    best = max(_BASELINES, key=lambda name: right[name].mean())
    ours, theirs = (
        list(right[name].reshape(len(runs), -1)) for name in (_ENCODER, best)
    )
    low, high = sampling.gain_interval(ours, theirs, choices=(2, 2))
    leads = (right[_ENCODER] - right[best]).mean(axis=(0, 2))
    lead = right[_ENCODER].mean() - right[best].mean()
    splits = [100 * x.mean(axis=(0, 2)) for x in right.values()]
    return [
        *(f"{x.mean():.1f} ± {x.std(ddof=1):.1f}" for x in splits),
        f"{100 * lead:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
        ", ".join(f"{100 * x:+.1f}" for x in leads),
    ]


def main():
    """Tries what is not stored yet, and prints the table."""
    directory = pathlib.Path(__file__).parent / "results"
    parser = results.draws_parser(
        "Spoken digits", directory, "zip", "Of the WAV files."
    )
    arguments = parser.parse_args()
    path = arguments.results / "spoken_digits.json"
    data = read_sounds(arguments.zip)
    for draw in range(arguments.draws):
        results.once(
            path,
            {"draw": draw},
            lambda: try_draw(data, draw),  # noqa: B023 - called now.
        )
    runs = results.stored(path)
    rows = [[str(x), *row_of(runs, str(x))] for x in _LABELS]
    titles = ["labels", _ENCODER, *_BASELINES, "lead", "of each split"]
    results.report(results.markdown(titles, rows))


if __name__ == "__main__":
    main()
