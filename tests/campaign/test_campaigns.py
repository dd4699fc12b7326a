"""The campaign itself: a fault is found, told with its case, and the same seed makes the same cases."""

import json
import time

import pytest
from campaigns import Campaign, table


def campaign(tmp_path, **settings):
    return Campaign(**{"seed": 7, "seconds": 60.0, "folder": tmp_path, **settings})


def test_counts_what_became_of_each_case(tmp_path):
    tally = campaign(tmp_path).run("coins", lambda random: ["head", "tail"][random.integers(2)], share=1, most=40)
    assert tally.cases == sum(tally.outcomes.values()) == 40
    assert set(tally.outcomes) == {"head", "tail"}
    assert json.loads((tmp_path / "coins.json").read_text())["outcomes"] == dict(tally.outcomes)
    assert "| coins | 40 |" in table(tmp_path)


def test_same_seed_makes_same_cases(tmp_path):
    drawn = []
    for _ in range(2):
        campaign(tmp_path).run("numbers", lambda random: str(drawn.append(random.integers(2**60))), share=1, most=3)
    assert drawn[:3] == drawn[3:]
    assert len(set(drawn)) == 3


def test_one_case_is_tried_again(tmp_path):
    drawn = []
    attempt = lambda random: str(drawn.append(random.integers(2**60)))  # noqa: E731
    campaign(tmp_path).run("numbers", attempt, share=1, most=3)
    campaign(tmp_path, case=2).run("numbers", attempt, share=1)
    assert drawn[3:] == drawn[2:3]


@pytest.mark.parametrize(("error", "outcome"), [(AssertionError("other pixels"), "wrong"), (KeyError("a"), "escaped")])
def test_fault_is_told_with_its_case(tmp_path, error, outcome):
    def attempt(random):
        if random.integers(2):
            raise error
        return "refused"

    with pytest.raises(AssertionError) as failure:
        campaign(tmp_path).run("faulty", attempt, share=1, most=20)
    tally = json.loads((tmp_path / "faulty.json").read_text())
    number = tally["faults"][0][0]
    assert f"case {number}: " in str(failure.value)
    assert str(error) in str(failure.value)
    assert any(name.startswith(outcome) for name in tally["outcomes"])
    with pytest.raises(AssertionError):
        campaign(tmp_path, case=number).run("faulty", attempt, share=1)


def test_slow_case_is_a_fault(tmp_path):
    def attempt(random):
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        return "refused"

    with pytest.raises(AssertionError, match=r"took 0\.\d s, expected at most 0.1; refused"):
        campaign(tmp_path).run("slow", attempt, share=1, slowest=0.1, most=1)


def test_ends_when_its_share_is_used(tmp_path):
    begun = time.monotonic()
    campaign(tmp_path, seconds=40.0).run("short", lambda random: "refused", share=0.005)
    assert 0.2 <= time.monotonic() - begun < 20


def test_table_tells_of_the_soak(tmp_path):
    soak = {"seconds": 3_600.2, "threads": 32, "answers": 58_065, "wrong": [], "start": 72.2, "closed": 134.6}
    (tmp_path / "soak.txt").write_text(json.dumps(soak | {"memory": [300.0] * 10 + [316.0] * 100 + [318.0] * 10}))
    assert table(tmp_path).splitlines()[-1] == (
        "Soak: 32 threads for 3,600 s, 58,065 answers, 0 of them wrong. Memory: 72 MB before the model was opened, "
        "316 MB early on, 318 MB at the end, 135 MB after it was closed."
    )
