"""What some tests need of the processor."""

import pathlib

import pytest

_INFO = pathlib.Path("/proc/cpuinfo")

# Without such instructions sums of products are rounded to bfloat16 on the way,
# and tell nothing of how gradients are added.
needs_bfloat16 = pytest.mark.skipif(
    _INFO.exists() and "_bf16" not in _INFO.read_text(),
    reason="This processor has no bfloat16.",
)
