import numpy as np
import pytest

from keras_simclr.moments import moments


@pytest.mark.parametrize("shift", [0.0, 1e8])
def test_moments_are_those_of_all_batches_together(shift):
    rng = np.random.default_rng(0)
    values = shift + rng.normal(size=(90, 3)) * [1.0, 2.0, 0.0]
    batches = iter([values[:1], values[1:61].reshape(20, 3, 3), values[61:]])
    mean, stddev = moments(batches)
    np.testing.assert_allclose(
        mean, values.mean(axis=0), rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(stddev, values.std(axis=0), rtol=1e-6, atol=1e-7)
