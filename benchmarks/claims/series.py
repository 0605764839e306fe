"""Windows of a watch: an encoder's lead over statistics, on unseen people.

    pip download seglearn --no-deps
    python benchmarks/claims/series.py --wheel=seglearn-1.2.5-py3-none-any.whl \
        [--draws=5] [--results=DIR]

140 recordings of seven exercises of the shoulder, by accelerometer and
gyroscope at 50 Hz, cut into windows of 128 steps, one every 64. People 1 to 5
are learned from: all their windows without labels, and 10 or 50 of each
exercise, or all, with them. People 6 to 10 are tested on; nothing was tuned on
them, but by training on some of the first five and testing on others.

What learns from labels: logistic regression on the representations, on the
statistics and spectrum of a window (`series.statistics`) and on both; and 300
extremely randomized trees on the statistics. Each draw has other labelled
windows and other first weights. Windows of one person are alike: the interval
of a lead is that of the mean over the five people.
"""

import io
import pathlib
import sys
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import keras
import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import keras_simclr as simclr
from benchmarks import results
from benchmarks.claims import verdicts
from keras_simclr import features, sampling, series
from keras_simclr.windows import windows_of_all

_FILE = "seglearn/data/watch_dataset.npy"
_TESTED_ON = (6, 7, 8, 9, 10)
_LABELS = (10, 50, "all")
_WINDOW, _BATCH, _EPOCHS = 128, 128, 60
_ENCODER, _BOTH = "encoder", "encoder and statistics"
_BASELINES = ("statistics, logistic regression", "statistics, extra trees")


def read_windows(wheel):
    """Windows of all recordings, their exercises and their people."""
    with zipfile.ZipFile(wheel) as archive:
        file = io.BytesIO(archive.read(_FILE))
    # A dictionary, pickled: only from a wheel that one trusts.
    found = np.load(file, allow_pickle=True).item()
    windows, exercises, places = windows_of_all(found["X"], found["y"], _WINDOW)
    return windows, exercises, np.asarray(found["subject"])[places]


def pretrained(windows, seed):
    """A model that has seen windows without labels."""
    keras.utils.set_random_seed(seed)
    shape = windows.shape[1:]
    model = simclr.SimCLRModel(
        series.default_encoder(shape),
        seed=seed,
        **series.default_augmentation((None, *shape)),
    )
    dataset = simclr.dataset_from_arrays(windows, batch_size=_BATCH)
    features.adapt(model, dataset)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, _EPOCHS * len(dataset))
    model.compile(
        keras.optimizers.Adam(rate),
        simclr.NTXent(0.1),
        steps_per_execution=len(dataset),
    )
    model.fit(dataset, epochs=_EPOCHS, verbose=0)
    return model


def try_draw(windows, exercises, people, draw):
    """For each number of labels, who is right how often of whom."""
    is_tested = np.isin(people, _TESTED_ON)
    train, test = np.flatnonzero(~is_tested), np.flatnonzero(is_tested)
    model = pretrained(windows[train], draw)
    h = simclr.extract_features(model, windows)
    raw = series.statistics(windows)

    def linear():
        model = LogisticRegression(C=0.3, max_iter=1_000)
        return make_pipeline(StandardScaler(), model)

    trees = ExtraTreesClassifier(300, random_state=draw)
    methods = {
        _ENCODER: (linear(), h),
        _BOTH: (linear(), np.concatenate([h, raw], axis=1)),
        _BASELINES[0]: (linear(), raw),
        _BASELINES[1]: (trees, raw),
    }
    found = {}
    for amount in _LABELS:
        rng = np.random.default_rng([draw, _LABELS.index(amount)])
        drawn = sampling.draw_labelled(exercises[train], amount, rng)
        places = train[drawn]
        found[str(amount)] = {}
        for name, (estimator, x) in methods.items():
            estimator.fit(x[places], exercises[places])
            is_right = estimator.predict(x[test]) == exercises[test]
            found[str(amount)][name] = [
                round(float(is_right[people[test] == person].mean()), 4)
                for person in _TESTED_ON
            ]
    return {"labels": found}


def verdict(runs, amount, contender):
    """Cells of a table: the means, the lead, its interval and the verdict."""
    of_person = {
        name: np.mean([run["labels"][amount][name] for run in runs], axis=0)
        for name in (contender, *_BASELINES)
    }
    best = max(_BASELINES, key=lambda name: of_person[name].mean())
    leads = (of_person[contender] - of_person[best]).tolist()
    mean, half = verdicts.interval(leads)
    word = "a lead" if mean > half else "no lead"
    word = "behind" if mean < -half else word
    return [
        *(f"{100 * x.mean():.1f}" for x in of_person.values()),
        f"{100 * mean:+.1f} ± {100 * half:.1f}",
        word,
    ]


def main():
    """Tries what is not stored yet, and prints the table of verdicts."""
    directory = pathlib.Path(__file__).parent / "results"
    parser = results.draws_parser(
        "Windows of a watch", directory, "wheel", "Of seglearn."
    )
    arguments = parser.parse_args()
    path = arguments.results / "series.json"
    data = read_windows(arguments.wheel)
    runs = [
        results.once(path, {"draw": draw}, lambda: try_draw(*data, draw))  # noqa: B023 - now.
        for draw in range(arguments.draws)
    ]
    titles = ["labels", "contender", "its accuracy", *_BASELINES, "lead", ""]
    rows = [
        [str(amount), contender, *verdict(runs, str(amount), contender)]
        for amount in _LABELS
        for contender in (_ENCODER, _BOTH)
    ]
    results.report(results.markdown(titles, rows))


if __name__ == "__main__":
    main()
