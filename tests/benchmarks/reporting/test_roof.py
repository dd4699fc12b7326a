"""Measurements above a machine's peaks, found in reports that are invented and in those that docs/benchmarks keeps."""

from pathlib import Path

import pytest
from measured import ENVIRONMENT, measured

from benchmarks.reporting.report import markdown
from benchmarks.reporting.roof import NOISE, above_peak
from benchmarks.results import Measurement, Results

ROOT = Path(__file__).parents[3]


def peak(value=200.0, precision="fp32"):
    settings = {"device": "cpu", "precision": precision, "threads": 2}
    facts = {"by": "convolution 64x160x240, PyTorch"}
    return Measurement(
        part="peak", contestant="convolution", settings=settings, unit="GFLOP/s", values=(1.0, value), facts=facts
    )


def layer(rate, name="downs.0.conv.0", form="direct", part="layers", contestant="unet-deploy", **settings):
    """A measurement of 2 GFLOP at a rate in GFLOP/s."""
    facts = {"gflop": 2.0} | ({"form": form} if part == "layers" else {})
    settings = {"device": "cpu", **({"layer": name} if part == "layers" else {"precision": "fp32"}), **settings}
    milliseconds = (2000 / rate,) * 5
    return Measurement(part=part, contestant=contestant, settings=settings, unit="ms", values=milliseconds, facts=facts)


def results(*found):
    return Results(environment=ENVIRONMENT, method={}, disturbance=None, measurements=found)


def test_a_layer_above_the_peak_is_found_and_told():
    """As on a machine where PyTorch's product reached 207 GFLOP/s, and a layer in ONNX Runtime 476."""
    found = above_peak(results(peak(207.0), layer(476.0), layer(206.0, "downs.1.conv.0")))
    assert [(one.name, round(one.times, 2)) for one in found] == [("downs.0.conv.0", 2.3)]
    told = "**Too low**: the peak was exceeded by downs.0.conv.0 (2.30 times). Shares of the peak mean nothing in this"
    assert f"\n{told} report.\n" in markdown(results(peak(207.0), layer(476.0)))
    assert "Too low" not in markdown(results(peak(477.0), layer(476.0)))


@pytest.mark.parametrize(
    ("found", "is_above"),
    [
        (layer(200 * NOISE - 1), False),
        (layer(200 * NOISE + 1), True),
        (layer(900.0, form="f4"), False),
        (layer(900.0, part="latency", contestant="ncnn"), False),
        (layer(900.0, part="latency", contestant="unet-deploy, for CPUs"), False),
        (layer(900.0, part="latency", contestant="OpenVINO"), True),
        (layer(900.0, part="latency", contestant="OpenVINO", precision="bf16"), False),
        (layer(900.0, device="cuda:0"), False),
    ],
)
def test_only_what_computes_all_operations_of_the_peaks_kind_counts(found, is_above):
    assert [one.measured for one in above_peak(results(peak(), peak(1000.0, "bf16"), found))] == [found] * is_above


def test_nothing_in_the_kept_reports_is_above_its_peaks():
    """Reports of before `by` have the peak of one library alone, which may be too low."""
    kept = [Results.read(path) for path in sorted((ROOT / "docs" / "benchmarks").rglob("results.json"))]
    assert kept
    for one in (*kept, measured()):
        if any("by" in each.facts for each in one.of("peak")):
            assert [f"{above.name}: {above.times:.2f}" for above in above_peak(one)] == []
