"""What some tests need of the processor."""

import pathlib

import pytest

_INFO = pathlib.Path("/proc/cpuinfo")

# Without such instructions TensorFlow rounds sums of products to bfloat16 on
# the way, but under XLA: Keras's own convolutions are as far off as ours there.
needs_bfloat16 = pytest.mark.skipif(
    _INFO.exists() and "_bf16" not in _INFO.read_text(),
    reason="This processor has no bfloat16.",
)
