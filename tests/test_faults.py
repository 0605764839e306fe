from helpers import faults


def test_every_fault_has_a_test_or_a_reason():
    missing, unknown = faults.uncovered()
    assert not missing, (
        f"Mark a test of {sorted(map(str, missing))} with @pytest.mark.fault, "
        "or say in NOTES of tests/helpers/faults.py why there can be none."
    )
    assert not unknown
    numbers = [x for part in faults.FAULTS.values() for x in part]
    assert [str(x) for x in numbers if x != "26b"] == [
        str(x) for x in range(1, 77)
    ]


def test_list_of_faults_is_up_to_date():
    assert faults.PATH.read_text() == faults.text(), (
        "Run python tests/helpers/faults.py"
    )
