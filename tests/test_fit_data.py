import pytest
import tensorflow as tf

from keras_simclr import fit_data


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
        "An infinite dataset needs `steps_per_epoch`. Pass it to `fit`, or "
        "leave out `repeat()`."
    )


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
