import json

import pytest
from helpers import digests

STORED = json.loads(digests.PATH.read_text())
OURS = STORED["machines"].get(digests.machine(), {})
NAMES = set(STORED["sizes"]).union(*STORED["machines"].values())


@pytest.mark.parametrize("case", digests.CASES, ids=lambda case: case.__name__)
def test_numbers_stay_what_they_are(case, tmp_path):
    """Bit for bit on machines that are known, nearly on others."""
    count = 0
    for name, arrays in case(tmp_path):
        name = f"{case.__name__}: {name}"
        if OURS:
            assert digests.digest(arrays) == OURS[name], name
        size = digests.size(arrays)
        if size is not None:
            assert size == pytest.approx(STORED["sizes"][name], rel=0.01)
        count += 1
    assert count == sum(x.startswith(case.__name__) for x in NAMES)
