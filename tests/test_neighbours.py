import numpy as np
import pytest

from keras_simclr.neighbours import NearestNeighbours, k_centres, unit_rows

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(60, 7)).astype("float32")
QUERIES = RNG.normal(size=(5, 7)) * 100


def cosines(a, b):
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return a @ b.T / lengths


def test_found_are_the_largest_cosines():
    places, similarities = NearestNeighbours(ROWS).find(QUERIES, 9)
    expected = cosines(QUERIES, ROWS)
    order = np.argsort(-expected, axis=1)[:, :9]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_allclose(
        similarities, np.take_along_axis(expected, order, 1), atol=1e-6
    )


def test_others_leave_out_the_row_itself():
    places, similarities = NearestNeighbours(ROWS).others(59)
    expected = cosines(ROWS, ROWS)
    np.fill_diagonal(expected, -np.inf)
    np.testing.assert_array_equal(places, np.argsort(-expected)[:, :59])
    assert (np.diff(similarities, axis=1) <= 0).all()


def test_lengths_do_not_matter_and_zeros_are_like_nothing():
    rows = np.array([[0, 0], [1e-30, 0], [3e30, 3e30]], "float32")
    places, similarities = NearestNeighbours(rows).find([[5.0, 0.0]], 3)
    assert places.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(similarities, [[1, 0.5**0.5, 0]], atol=1e-6)
    assert np.isfinite(unit_rows(rows)).all()


def test_equals_come_in_order():
    places, similarities = NearestNeighbours(np.ones((40, 3))).others(3)
    assert places[:2].tolist() == [[1, 2, 3], [0, 2, 3]]
    np.testing.assert_allclose(similarities, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: NearestNeighbours(np.zeros(3)), "numbers of shape (N, D)"),
        (lambda: NearestNeighbours(np.zeros((0, 3))), "at least one row"),
        (lambda: NearestNeighbours([["a", "b"]]), "dtype <U1"),
        (lambda: NearestNeighbours([[np.nan]]), "`features` must be finite"),
        (
            lambda: NearestNeighbours(ROWS).find(ROWS[:, :3], 1),
            "`features` must be as wide as those to search: 7.",
        ),
        (
            lambda: NearestNeighbours(ROWS).others(60),
            "`count` must be at most 59: there are 60 rows. Received: count=60",
        ),
        (lambda: NearestNeighbours(ROWS).find(ROWS, 0), "`count` must be"),
        (lambda: k_centres(ROWS, 0), "`count` must be"),
        (
            lambda: k_centres(ROWS, 1, np.ones(3, bool)),
            "`known` must be booleans of shape (60,), one a row.",
        ),
        (lambda: k_centres(ROWS[:, 0], 3), "numbers of shape (N, D)"),
    ],
)
def test_other_arguments_are_refused(act, message):
    with pytest.raises(ValueError) as error:
        act()
    assert message in str(error.value)


def greedy(rows, count, known):
    """k-centre by its definition, in float64, with all cosines at hand."""
    alike, chosen = cosines(rows, rows), list(np.flatnonzero(known))
    found = []
    while len(found) < count and len(chosen) < len(rows):
        rest = [x for x in range(len(rows)) if x not in chosen]
        if chosen:
            place = min(rest, key=lambda x: alike[x, chosen].max())
        else:
            unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            place = max(rest, key=lambda x: unit[x] @ unit.mean(axis=0))
        nearest = max(chosen, key=lambda x: alike[place, x]) if chosen else -1
        found.append((place, nearest))
        chosen.append(place)
    owners = [
        max(chosen, key=lambda x: alike[row, x]) for row in range(len(rows))
    ]
    return found, [owners.count(place) for place, _ in found]


@pytest.mark.parametrize("known", [(), (3, 8, 21)], ids=["none", "some"])
@pytest.mark.parametrize("count", [1, 12, 100])
def test_centres_are_those_of_the_definition(known, count):
    is_known = np.isin(np.arange(60), known)
    found = k_centres(ROWS, count, is_known)
    expected, counts = greedy(ROWS.astype("float64"), count, is_known)
    pairs = list(zip(found.places, found.nearest, strict=True))
    assert pairs == expected
    assert found.counts.tolist() == counts
    first = np.isnan(found.similarities).tolist()
    assert first == [not known, *[False] * (len(expected) - 1)]
    later = found.similarities[0 if known else 1 :]
    assert (np.diff(later) >= -1e-6).all()  # Ever nearer.


def test_nothing_is_chosen_where_all_is_known():
    found = k_centres(ROWS, 5, np.ones(60, bool))
    assert len(found.places) == len(found.counts) == 0


def test_copies_are_not_chosen_before_others():
    rows = np.repeat(ROWS[:6], 10, axis=0)
    found = k_centres(rows, 6)
    assert sorted(found.places // 10) == [*range(6)]
    assert found.counts.sum() == 60
