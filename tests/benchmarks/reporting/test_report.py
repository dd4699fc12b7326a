import re

import pytest
from measured import ENVIRONMENT, measured, measurement, stages, trade_off

from benchmarks.reporting.report import markdown
from benchmarks.reporting.tables import escaped, in_unit, markdown_table, settings_text, three_digits
from benchmarks.results import PARTS, Results, Skipped

ONE = {"batch": 1, "height": 160, "width": 240, "device": "cpu", "threads": 2}


def report(*measurements, **others):
    given = {"environment": ENVIRONMENT, "method": {}, "disturbance": None} | others
    return markdown(Results(**given, measurements=measurements))


def row(text, start):
    """The cells of the row that starts with this."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} ")]
    return [part.strip() for part in line.strip("|").split("|")]


def test_every_part_has_a_section_in_order_and_the_environment_ends_it():
    text = markdown(measured())
    heads = [line.removeprefix("## ").lower() for line in text.splitlines() if line.startswith("## ")]
    present = {one.part for one in measured().measurements}
    assert heads == ["goals", *(part for part in PARTS if part in present), "environment"]
    assert text.startswith("# Benchmarks of model.onnx\n\nMeasured on Abacus 3000, 2 cores; rounds 20, threads 2,")
    assert text.endswith("- time: 2026-01-02T03:04:05+00:00\n")
    assert "- versions: torch 2.15.0, onnxruntime 1.31.1\n" in text
    assert "- gpu: -\n" in text


def test_all_tables_are_well_formed():
    blocks = re.findall(r"(?:^\|.*\n)+", markdown(measured()), re.M)
    assert len(blocks) > 12
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_a_disturbed_run_says_at_its_head_that_it_is_no_measurement():
    assert report(disturbance="it | rained").splitlines()[2] == "**Not a measurement**: it \\| rained."
    assert "Not a measurement" not in report()


def test_contestants_are_compared_with_the_first_of_their_group():
    times = {"PyTorch eager": (30.0,) * 5, "ours": (20.0,) * 5, "slow": (60.0,) * 5}
    text = report(*(measurement("latency", name, ONE, "ms", ms, group="a") for name, ms in times.items()))
    assert "All with 240x160, batch 1, cpu, threads 2." in text
    assert "times as fast as PyTorch eager" in text
    assert row(text, "PyTorch eager") == ["PyTorch eager", "30.0", "30.0", "30.0", "0 %", "5", "1"]
    assert row(text, "ours")[-1] == "1.50 (1.50 to 1.50)"
    assert row(text, "slow")[-1] == "0.50 (0.50 to 0.50)"


def test_more_images_a_second_are_faster():
    speeds = {"script": (2.0,) * 5, "stream": (3.0,) * 5}
    text = report(*(measurement("folder", name, {}, "images/s", one, group="a") for name, one in speeds.items()))
    assert row(text, "stream") == ["stream", "3.00", "0 %", "5", "1.50 (1.50 to 1.50)"]


def test_what_did_not_take_turns_is_not_compared():
    text = report(*(measurement("latency", name, ONE, "ms", (1.0,) * 5, group=name) for name in ("a", "b")))
    assert row(text, "b")[-1] == "-"


def test_each_batch_size_and_machine_has_a_table_of_its_own():
    found = [
        measurement(
            "latency", name, ONE | {"batch": batch, "device": device}, "ms", (1.0,) * 5, group=f"{batch} {device}"
        )
        for batch in (1, 4)
        for device in ("cpu", "cuda:0")
        for name in ("eager", "ours")
    ]
    titles = re.findall(r"^\*\*(.*)\*\*$", report(*found), re.M)
    assert titles == ["batch 1, cpu", "batch 1, gpu", "batch 4, cpu", "batch 4, gpu"]
    assert "-" not in re.findall(r"\| (\S+) +\|$", report(*found), re.M)


def test_operations_become_gflop_per_second_and_a_share_of_the_peak():
    facts = {"gflop": 96.0, "peak_share": 0.7339, "provider": "CPUExecutionProvider", "max_abs_error": 3.1e-7}
    text = report(measurement("latency", "ours", ONE, "ms", 600.0, facts=facts))
    assert row(text, "contestant") == ["contestant", "ms", "GFLOP/s", "of the peak", "largest error", "runs on"]
    assert row(text, "ours") == ["ours", "600", "160", "73.4 %", "3.1e-07", "CPUExecutionProvider"]
    assert row(report(measurement("tiles", "ours", ONE, "s", 0.5, facts=facts)), "ours")[1:3] == ["0.500", "192"]


def test_stages_stand_in_one_row_with_their_sum():
    text = report(*stages())
    assert row(text, "image") == ["image", "decode", "fit", "infer", "restore", "sum"]
    *parts, whole = map(float, row(text, "1918x1280")[1:])
    assert sum(parts) == pytest.approx(whole, rel=0.01)


def test_accuracy_and_time_of_a_file_stand_in_one_row():
    text = report(*trade_off())
    assert row(text, "contestant") == ["contestant", "ms", "Dice", "epochs", "file in MB"]
    assert row(text, "base 64, fp32")[2:] == ["0.8740", "3", "124"]


def test_a_file_that_fails_its_gate_says_so():
    facts = {"gate_passed": False, "gate_image_dice": 0.3}
    text = report(measurement("trade-off", "ours", {"base": 8}, "Dice", 0.91, facts=facts))
    assert row(text, "contestant") == ["contestant", "Dice", "passes its gate", "Dice in the gate"]
    assert row(text, "ours") == ["ours", "0.9100", "no", "0.3000"]


def test_curves_are_told_with_their_exponents_interval_and_misfit():
    of = {"of": "ms", "over": "pixels"}
    text = report(measurement("scaling", "ours", of, "exponent", (1.0, 1.1, 1.1, 1.1, 1.2), facts={"miss": 0.043}))
    assert "- ours, ms over pixels: exponent 1.100 (1.000 to 1.200 by the rounds), off by at most 4.30 %.\n" in text


def test_memory_is_told_in_the_order_of_the_predictions():
    text = report(measurement("memory", "ours", {"images": 9}, "MB", (310.0, 402.0, 401.0)))
    assert row(text, "ours") == ["ours", "images 9", "310", "401", "402"]


def test_of_parity_the_worst_image_counts():
    text = report(
        measurement("parity", "ours", {"images": 3}, "error", (2.4e-7, 4.8e-7, 1.2e-7)),
        measurement("parity", "ours", {"images": 3}, "share", (0.0, 0.0, 2e-5)),
    )
    assert row(text, "contestant") == ["contestant", "error", "share"]
    assert row(text, "ours") == ["ours", "4.8e-07", "0.00200 %"]


def test_what_was_skipped_is_told_once_for_each_reason():
    def skip(contestant, reason, batch):
        return Skipped(part="latency", contestant=contestant, settings={"batch": batch}, reason=reason)

    text = report(
        skipped=(
            *(skip("ncnn", "is not installed", batch) for batch in (1, 2)),
            *(skip("TensorRT", "no driver", batch) for batch in (1, 2, 3, 4)),
        )
    )
    assert "- ncnn (batch 1; batch 2): is not installed\n" in text
    assert "- TensorRT (4 times, first batch 1): no driver\n" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.0, "1.00"),
        (0.00123456, "0.00123"),
        (3.2e-7, "3.2e-07"),
        (9.999, "10.0"),
        (355.4, "355"),
        (12_345.6, "12,300"),
        (float("inf"), "-"),
    ],
)
def test_numbers_have_three_digits_that_mean_something(value, text):
    assert three_digits(value) == text


def test_units_are_written_as_they_are_read():
    assert in_unit(0.87654, "Dice") == "0.8765"
    assert in_unit(0.000123, "share") == "0.0123 %"
    assert in_unit(1e-17, "share") == "0 %"
    assert in_unit(2.44e-7, "error") == "2.4e-07"


def test_settings_are_one_line():
    assert settings_text({"batch": 1, "height": 2, "width": 3, "device": "cpu", "precision": "fp16"}) == (
        "3x2, batch 1, cpu, fp16"
    )
    assert settings_text({}) == ""


def test_cells_cannot_break_a_table():
    assert escaped("a|b<c>\\") == "a\\|b&lt;c>\\\\"
    assert markdown_table(["name", "ms >"], [["a|b", "1"]]) == ["| name |  ms |", "|------|----:|", "| a\\|b |   1 |"]
