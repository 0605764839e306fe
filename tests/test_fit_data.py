import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_simclr as simclr
from keras_simclr import fit_data, iterables

ROWS = np.random.default_rng(0).normal(size=(20, 8)).astype("float32")
ROWS[:, 0] = range(20)


class Seen(keras.layers.Layer):
    """An augmentation that keeps which rows it has seen."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def call(self, rows, training=True, seed=None):
        if training:
            tf.py_function(self.note, [rows], [])
        return tf.identity(rows)

    def note(self, rows):
        self.batches.append(rows.numpy()[:, 0].astype(int).tolist())


def model(**kwargs):
    keras.utils.set_random_seed(1)
    encoder = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    model = simclr.SimCLRModel(
        encoder,
        keras.layers.Dense(2),
        augmentation=Seen(),
        second_augmentation=keras.layers.Identity(),
    )
    model.compile("sgd", **kwargs)
    model.augmentation.batches.clear()
    return model


def seen(model, data, **kwargs):
    """Batches of a `fit`: of ten in an epoch."""
    model.augmentation.batches.clear()
    kwargs = {"verbose": 0, **kwargs}
    if not isinstance(data, tf.data.Dataset):
        kwargs["batch_size"] = 2
    model.fit(data, **kwargs)
    return list(model.augmentation.batches)


def flat(lists):
    return list(itertools.chain(*lists))


def of_user():
    dataset = tf.data.Dataset.from_tensor_slices(ROWS).shuffle(20, seed=3)
    return dataset.batch(2, drop_remainder=True)


def of_package():
    return simclr.dataset_from_arrays(ROWS, batch_size=2)


SOURCES = {
    "arrays": lambda: ROWS,
    "package": of_package,
    "mapped": lambda: of_package().map(lambda rows: rows),
    "shuffled": lambda: of_package().shuffle(10, seed=3),
    "user": of_user,
}
by_source = pytest.mark.parametrize(
    "make", SOURCES.values(), ids=SOURCES.keys()
)
pytestmark = pytest.mark.filterwarnings("ignore:These layers of")


# An epoch has ten steps: 3 and 8 do not divide it, 16 are more than it has.
@pytest.mark.parametrize(
    ("source", "steps_per_execution"),
    [
        ("arrays", 3),
        ("arrays", 16),
        ("package", 8),
        ("mapped", 3),
        ("shuffled", 16),
        ("user", 8),
    ],
)
def test_epochs_end_where_executions_do_not(source, steps_per_execution):
    make = SOURCES[source]
    expected = seen(model(), make(), epochs=3)
    other = model(steps_per_execution=steps_per_execution)
    assert seen(other, make(), epochs=3) == expected
    assert len(expected) == int(other.optimizer.iterations) == 30
    for start in (0, 10, 20):
        rows = flat(expected[start : start + 10])
        assert sorted(rows) == list(range(20))
    assert len(seen(other, make(), epochs=2, steps_per_epoch=4)) == 8


def test_infinite_data_and_steps_per_execution():
    other = model(steps_per_execution=8)
    endless = of_user().repeat()
    assert len(seen(other, endless, epochs=3, steps_per_epoch=10)) == 30


def test_validation_steps_are_those_that_were_asked_for():
    other, counts = model(steps_per_execution=8), []
    test_step = other.test_step
    other.test_step = lambda element: counts.append(1) or test_step(element)
    other.run_eagerly = True
    seen(other, ROWS, validation_data=of_user(), validation_steps=3)
    assert len(counts) == 3
    other.evaluate(of_user(), steps=2, verbose=0)
    assert len(counts) == 5


@by_source
def test_fit_in_a_loop_goes_on_with_new_orders(make):
    whole = seen(model(), make(), epochs=4)
    # The same dataset again, a new one, and one that was left out.
    again, data = model(), make()
    assert flat(seen(again, x) for x in (data, data, make(), data)) == whole
    third = model(run_eagerly=True)  # Ten steps take less than a graph.
    assert seen(third, make(), epochs=3, initial_epoch=2) == whole[20:30]


def test_fit_begins_anew_if_it_is_told_to():
    first, again = (model(run_eagerly=True) for _ in range(2))
    seen(again, ROWS)
    assert seen(again, ROWS, initial_epoch=0) == seen(first, ROWS)


def test_orders_do_not_depend_on_the_global_seed():
    first = seen(model(), ROWS), list(map(str, of_package()))
    keras.utils.set_random_seed(99)
    other = model()
    keras.utils.set_random_seed(98)
    assert (seen(other, ROWS), list(map(str, of_package()))) == first


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 25:
            raise KeyboardInterrupt


@pytest.mark.fault(51)
@by_source
def test_restored_training_is_the_uninterrupted_one(make, tmp_path):
    whole = model()
    batches = seen(whole, make(), epochs=4)
    keeper = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        seen(model(), make(), epochs=4, callbacks=[keeper, Interrupt()])
    restored = model()
    keeper = keras.callbacks.BackupAndRestore(tmp_path)
    assert seen(restored, make(), epochs=4, callbacks=keeper) == batches[20:]
    for ours, right in zip(restored.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(ours, right)


def test_empty_dataset_is_refused():
    dataset = tf.data.Dataset.range(3).batch(4, drop_remainder=True)
    with pytest.raises(ValueError) as error:
        fit_data.check_length(dataset)
    assert str(error.value) == (
        "The dataset must hold at least one batch. Received: an empty "
        "dataset. If it ends in batch(..., drop_remainder=True), use a "
        "smaller batch."
    )


def test_dataset_without_end_needs_a_number_of_steps():
    dataset = tf.data.Dataset.range(4).batch(4).repeat()
    assert fit_data.check_length(dataset, 3) is None
    with pytest.raises(ValueError) as error:
        fit_data.check_length(dataset)
    assert str(error.value) == (
        "An infinite dataset needs `steps_per_epoch`. Pass it, or leave out "
        "`repeat()`."
    )


@pytest.mark.fault(44)
def test_dataset_of_unknown_length_is_accepted():
    dataset = tf.data.Dataset.range(8).filter(lambda x: x > 2).batch(4)
    assert fit_data.check_length(dataset) is None


def test_tuner_is_off_unless_the_dataset_asks_for_it():
    dataset = tf.data.Dataset.range(4)
    assert fit_data.prepared(dataset).options().autotune.enabled is False
    assert list(fit_data.prepared(dataset).as_numpy_iterator()) == [0, 1, 2, 3]
    options = tf.data.Options()
    options.autotune.enabled = True
    asked = dataset.with_options(options)
    assert fit_data.prepared(asked).options().autotune.enabled is True


class Sequence(keras.utils.PyDataset):
    """Ten batches of rows of a table, in the form that is asked for."""

    def __init__(self, form=lambda rows: rows, batches=10, last=2, **kwargs):
        super().__init__(**kwargs)
        self.form, self.batches, self.last, self.passes = form, batches, last, 0

    @property
    def num_batches(self):
        return self.batches

    def __getitem__(self, place):
        size = self.last if place == 9 else 2
        return self.form(ROWS[2 * (place % 10) :][:size])

    def on_epoch_end(self):
        self.passes += 1


FORMS = {
    "alone": lambda rows: rows,
    "labels": lambda rows: (rows, np.zeros(len(rows))),
    "list": lambda rows: [rows, np.zeros(len(rows))],
    "dictionary": lambda rows: {"images": rows, "groups": np.arange(len(rows))},
    "tensors": lambda rows: (tf.constant(rows),),
}


@pytest.mark.fault(43, 45)
@pytest.mark.filterwarnings("ignore:Your input ran out")  # Keras's, always.
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_elements_of_python_may_have_any_form(form):
    network = model(run_eagerly=True)
    whole = seen(network, ROWS, shuffle=False)
    batches = [form(ROWS[i : i + 2]) for i in range(0, 20, 2)]
    for data in (Sequence(form), (x for x in batches)):
        network.augmentation.batches.clear()
        network.fit(data, shuffle=False, verbose=0)
        assert network.augmentation.batches == whole
        assert network.predict(Sequence(form), verbose=0).shape == (20, 3)
    right = network.evaluate(ROWS, batch_size=2, verbose=0)
    for data in (Sequence(form), (x for x in batches)):
        assert network.evaluate(data, verbose=0) == pytest.approx(right)
        features = simclr.extract_features(network, Sequence(form))
    np.testing.assert_allclose(
        features, simclr.extract_features(network, ROWS), rtol=1e-5
    )


@pytest.mark.fault(46)
@pytest.mark.parametrize("workers", [1, 3])
def test_py_dataset_is_shuffled_as_arrays_are(workers):
    def orders(fits, epochs=1):
        network = model(run_eagerly=True)
        data = Sequence(workers=workers, max_queue_size=2)
        for _ in range(fits):
            network.fit(data, epochs=epochs, verbose=0)
        assert data.passes == fits * epochs
        return network.augmentation.batches

    both = orders(1, epochs=2)
    first, second = both[:10], both[10:]
    assert first != second
    assert sorted(first) == sorted(second)
    assert orders(2) == both  # Two calls of `fit`.


def test_sizes_of_batches_and_lengths_of_python():
    smaller = iterables.batches_from(Sequence(last=1))
    assert smaller.element_spec["images"].shape.as_list() == [None, 8]
    assert [len(x["images"]) for x in smaller][-2:] == [2, 1]
    alike = iterables.batches_from(Sequence())
    assert alike.element_spec["images"].shape.as_list() == [2, 8]
    assert len(alike) == 10
    endless = iterables.batches_from(Sequence(batches=None))
    assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
    assert len(list(endless.take(25))) == 25


@pytest.mark.fault(9, 43, 44, 45)
@pytest.mark.parametrize(
    ("data", "arguments", "text"),
    [
        (ROWS.tolist(), {}, "an object of class list. Make arrays"),
        (None, {}, "an object of class NoneType"),
        ("photos", {}, "an object of class str"),
        (lambda: iter(()), {}, "an empty dataset"),
        (lambda: iter([ROWS, ROWS]), {"epochs": 2}, "only once: more than one"),
        (
            lambda: iter([ROWS]),
            {"epochs": 2, "steps_per_epoch": 1},
            "has ended",
        ),
        (lambda: iter([ROWS, ROWS[:, :5]]), {}, r"of shape \(20, 5\)"),
        (lambda: iter([ROWS, (ROWS, ROWS, ROWS)]), {}, "a tuple of 3 parts"),
        (lambda: Sequence(last=1), {}, "at least two images"),
        (lambda: Sequence(batches=0), {}, "an empty dataset"),
        (lambda: Sequence(batches=None), {}, "needs `steps_per_epoch`"),
        (
            lambda: ROWS,
            {"validation_data": iter([ROWS]), "batch_size": 2},
            "In `validation_data`",
        ),
        (lambda: ROWS, {"steps_per_epoch": 0}, "`steps_per_epoch` must be an"),
        (lambda: ROWS, {"epochs": None}, "`epochs` must be an integer"),
        (lambda: ROWS, {"batch_size": "2"}, "`batch_size` must be an integer"),
        (lambda: ROWS, {"validation_split": 1.0}, "and less than 1"),
        (lambda: ROWS, {"validation_freq": 0}, "`validation_freq` must be an"),
        (
            lambda: iter([ROWS, ROWS]),
            {"epochs": 2, "steps_per_epoch": None},
            "only once: more than one",
        ),
    ],
)
def test_data_that_fit_cannot_use_are_refused(data, arguments, text):
    data = data() if callable(data) else data
    with pytest.raises((TypeError, ValueError), match=text):
        model(run_eagerly=True).fit(data, verbose=0, **arguments)


@pytest.mark.fault(43)
def test_arrays_may_come_with_no_labels_in_their_place():
    networks = [model(run_eagerly=True) for _ in range(2)]
    for network, data in zip(networks, (ROWS, (ROWS, None)), strict=True):
        network.fit(data, batch_size=2, verbose=0)
        assert network.predict(data, verbose=0).shape == (20, 3)
        assert network.evaluate(data, verbose=0)
    alone, in_pair = (x.augmentation.batches for x in networks)
    assert alone == in_pair


@pytest.mark.fault(44)
@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_what_has_no_end_is_refused_before_it_is_read(method):
    network = model(run_eagerly=True)
    with pytest.raises(ValueError, match="An infinite dataset needs `steps`"):
        getattr(network, method)(of_user().repeat(), verbose=0)
    with pytest.raises(ValueError, match="Leave out `repeat"):
        simclr.extract_features(network, of_user().repeat())


def test_no_epochs_are_no_error():
    network = model(run_eagerly=True)
    for arguments in ({"epochs": 0}, {"epochs": 2, "initial_epoch": 3}):
        history = network.fit(ROWS, batch_size=2, verbose=0, **arguments)
        assert not history.history


@pytest.mark.parametrize("is_timed", [False, True])
def test_reading_is_timed_only_for_who_asks(is_timed):
    dataset = tf.data.Dataset.range(3)
    stream = fit_data.Stream(dataset, dataset, is_timed=is_timed)
    stream.begin(epoch=0, steps_trained=0)
    read = stream.arguments["x"].take(3).as_numpy_iterator()
    assert [int(x) for x in read] == [0, 1, 2]
    assert (stream.waited > 0) == is_timed
