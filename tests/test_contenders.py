import numpy as np

from keras_simclr import contenders, probes, sampling
from keras_simclr.features import Features


def test_rows_that_follow_one_another_are_not_copied():
    array = np.arange(12).reshape(6, 2)
    span = contenders._rows_at(array, np.array([2, 3, 4]))
    assert np.shares_memory(span, array)
    for places in ([2, 4], [3, 2, 4]):
        rows = contenders._rows_at(array, np.array(places))
        np.testing.assert_array_equal(rows, array[places])


def test_time_that_is_told_is_the_sum_of_all_that_is_done():
    examples = {"images": np.zeros((9, 4)), "labels": np.arange(9) % 2}
    examples["groups"] = np.arange(9)
    features = Features({}, examples, ready={"table": np.ones((9, 3))})
    made = contenders.make_contenders(
        None, features, ["linear", "knn"], False, 0, True
    )
    assert [x.probe for x in made] == ["linear", "knn"]
    split = sampling.Split(np.arange(6), np.arange(6, 9))
    jobs = [sampling.Job("all", (split,) * 2, ())]
    words = []
    forecast = contenders.Forecast(made, jobs, features, 0.0, words.append)
    assert words[-1].startswith("This will take about ")
    assert forecast._guesses == [
        2 * probes.KINDS[x].seconds(6, 3, 3, 2, True) for x in ("linear", "knn")
    ]


def test_time_left_follows_what_was_taken():
    forecast = contenders.Forecast.__new__(contenders.Forecast)
    forecast._guesses = [90.0, 50.0, 60.0]
    assert forecast.seconds_left(1, 90.0) == 110.0
    assert forecast.seconds_left(1, 190.0) == 220.0
    assert forecast.seconds_left(3, 400.0) == 0.0
