import numpy as np
import pytest

from benchmarks.contestants.answers import Difference, compare_answers


@pytest.mark.parametrize(
    ("answer", "largest", "mean"),
    [([0.5, 0.25], 0.25, 0.125), ([0.5, np.nan], np.inf, np.inf), ([0.5, 0.5, 0.5], np.inf, np.inf)],
)
def test_differences(answer, largest, mean):
    found = compare_answers(np.array(answer, np.float32), np.array([0.5, 0.5], np.float32))
    assert found == Difference(largest=largest, mean=mean)


@pytest.mark.parametrize(
    ("precision", "largest", "mean", "words"),
    [
        ("fp32", 9e-5, 9e-5, None),
        ("fp32", 2e-4, 0.0, "answers differ by 0.0002, expected at most 0.0001 in fp32"),
        ("tf32", 1e-2, 1e-2, None),
        ("tf32", 3e-2, 0.0, "answers differ by 0.03, expected at most 0.02 in tf32"),
        ("fp16", 0.9, 9e-3, None),
        ("fp16", 0.9, 2e-2, "answers differ in the mean by 0.02, expected at most 0.01 in fp16"),
        ("int8", np.inf, np.inf, "answers differ in the mean by inf, expected at most 0.05 in int8"),
        ("bf16", 0.9, 6e-2, "answers differ in the mean by 0.06, expected at most 0.05 in bf16"),
    ],
)
def test_what_a_precision_may_differ_by(precision, largest, mean, words):
    assert Difference(largest=largest, mean=mean).refusal(precision) == words


def test_a_deep_network_may_differ_by_what_its_proof_allows():
    found = Difference(largest=2e-4, mean=1e-4)
    assert found.refusal("fp32", 2e-4) is None
    assert found.refusal("fp32", 1e-4) == "answers differ by 0.0002, expected at most 0.0001 in fp32"
    assert Difference(largest=0.1, mean=0.1).refusal("fp16", 1.0) is not None
