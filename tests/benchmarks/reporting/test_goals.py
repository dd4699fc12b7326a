"""The goals of a run, by invented results."""

import pytest
from measured import ENVIRONMENT

from benchmarks.reporting.goals import THIN, WIDE, goal_lines
from benchmarks.reporting.report import markdown
from benchmarks.results import Measurement, Results


def one(part, contestant, value, unit="ms", group="g", facts=None, **settings):
    return Measurement(
        part=part,
        contestant=contestant,
        settings={"device": "cpu", **settings},
        unit=unit,
        values=(value,) * 6,
        group=group,
        facts=facts or {},
    )


def rows(network, *found):
    results = Results(
        environment=ENVIRONMENT | {"network": f"U-Net of {network}, 240x160, 1 class"},
        method={},
        disturbance=None,
        measurements=found,
    )
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in goal_lines(results) if line.startswith("|")]
    return {row[0]: (row[1].partition(" ")[0], row[2]) for row in table[2:]}


FOLDER = (
    one("folder", "plain PyTorch script", 10.0, "images/s"),
    one("folder", "stream", 45.0, "images/s"),
    one("folder", "stream --fast-decode of the int8 file in OpenVINO", 65.0, "images/s"),
)
LATENCY = (
    one("latency", "ONNX Runtime", 101.0, precision="fp32"),
    one("latency", "unet-deploy", 100.0, precision="fp32"),
    one("latency", "OpenVINO", 80.0, precision="fp32"),
    one("latency", "OpenVINO", 22.0, precision="int8"),
    one("latency", "unet-deploy, OpenVINO", 20.0, precision="int8"),
    one("latency", "unet-deploy, OpenVINO", 60.0, precision="bf16"),
)


def test_goals_of_a_network_are_those_that_were_set_for_it():
    script = "against the plain script: at least"
    assert rows(THIN, *FOLDER) == {
        f"folder, stream {script} 4.00": ("4.50", "yes"),
        f"folder, --fast-decode and int8 in OpenVINO {script} 7.00": ("6.50", "no"),
    }
    assert rows(WIDE, *FOLDER) == {}
    best = ("our best contestant against the best of the others, in each precision: at least 1.00", ("0.80", "no"))
    assert rows(WIDE, *LATENCY) == dict(
        [
            ("int8 in OpenVINO against the default file: at least 4.00", ("5.00", "yes")),
            ("bf16 in OpenVINO against the default file: at least 2.00", ("1.67", "no")),
            best,
        ]
    )
    assert rows(THIN, *LATENCY) == dict(
        [("int8 in OpenVINO against the default file: at least 2.20", ("5.00", "yes")), best]
    )


def test_the_worst_case_counts_and_ratios_of_slowness_must_not_be_exceeded():
    with_batch = [
        one("overhead", name, value, group=group, engine="ONNX Runtime", batch=group)
        for group, ours in (("a", 102.0), ("b", 104.0))
        for name, value in (("bare session.run", 100.0), ("Predictor.run", ours))
    ]
    assert rows(THIN, *with_batch) == {"Predictor.run, times as long as the bare session: at most 1.03": ("1.04", "no")}
    cold = [
        one("cold start", "ONNX Runtime, Pillow and numpy by hand", 1.0, "s"),
        one("cold start", "runtime", 1.1, "s"),
    ]
    assert rows(THIN, *cold) == {"cold start, times as long as bare ONNX Runtime: at most 1.15": ("1.10", "yes")}


def test_what_auto_takes_is_compared_with_the_default_file():
    found = [
        one("which", "ONNX Runtime", 10.0, base=8, file="fp32", facts={"auto": True}),
        one("which", "OpenVINO", 11.0, base=8, file="u8", facts={"auto": True}),
        one("which", "ONNX Runtime", 12.0, base=8, file="u8", facts={"auto": False}),
    ]
    text = 'what "auto" takes against the default file in ONNX Runtime: at least 1.00'
    assert rows(THIN, *found) == {text: ("0.91", "no")}


@pytest.mark.parametrize("found", [(), FOLDER])
def test_a_report_begins_with_the_goals_that_were_measured(found):
    environment = ENVIRONMENT | {"network": f"U-Net of {THIN}"}
    text = markdown(Results(environment=environment, method={}, disturbance=None, measurements=found))
    assert ("## Goals" in text) is bool(found)
    assert not found or text.index("## Goals") < text.index("## Folder")


def test_an_interval_that_has_the_limit_is_within_the_noise():
    noisy = Measurement(
        part="folder",
        contestant="stream",
        settings={"device": "cpu"},
        unit="images/s",
        values=(30.0, 45.0, 44.0, 46.0, 45.0, 36.0),
        group="g",
    )
    (found,) = rows(THIN, FOLDER[0], noisy).values()
    assert found == ("4.45", "yes, within the noise")
