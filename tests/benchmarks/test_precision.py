import pytest

from benchmarks.cases.precisions import PrecisionReport
from benchmarks.precision import markdown


@pytest.mark.parametrize(("doubt", "first"), [(None, []), ("it rained", ["**Not a measurement**: it rained.", ""])])
def test_a_report_begins_with_doubts_and_ends_with_what_it_was_measured_on(doubt, first):
    environment = {"cpu": "Abacus", "cores": 2, "versions": {"torch": "3", "numpy": "4"}}
    report = PrecisionReport(
        device="cuda:0",
        images=1,
        shape=(1, 2, 3, 3),
        rounds=5,
        rows={},
        disturbance=doubt,
        environment=environment,
    )
    lines = markdown(report).splitlines()
    assert lines[: len(first) + 1] == [
        *first,
        "1 real images; batch 1 at 3x2 on cuda:0, 5 rounds, in which the files alternate.",
    ]
    assert lines[-2:] == ["", "Abacus, 2 cores; torch 3, numpy 4"]
