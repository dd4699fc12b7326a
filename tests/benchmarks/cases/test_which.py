"""Every export of a network in both engines, and the tables of them."""

import pytest
from benchmark_models import require_installed
from known_times import in_known_time
from which_table import PAGE, page

from benchmarks.cases import which
from benchmarks.cases.which import measure, serves
from benchmarks.contestants.base import BenchmarkModel
from benchmarks.reporting.report import markdown
from benchmarks.reporting.which import short_table
from benchmarks.results import Results, Skipped
from runtime.errors import ConfigError, DeviceError
from runtime.support.cpu_count import has_bf16
from unet_core.data.pairs import find_pairs
from unet_core.evaluate import evaluate


@pytest.fixture
def model(thin):
    return BenchmarkModel.read(thin / "model.onnx")


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(which, "interleave", in_known_time)


KINDS = {name: which.KINDS[name] for name in ("fp32", "cpu", "bf16")}
"""Without the exports that take long; the names of all are those of `unet-export`."""


@pytest.fixture
def found(model, known, tmp_path, monkeypatch):
    require_installed("openvino")
    monkeypatch.setattr(which, "KINDS", KINDS)
    return measure(model, tmp_path, bases=(2,), threads=1, rounds=6)


def test_random_weights_have_time_size_and_memory_and_no_dice(found, tmp_path):
    skipped = {(one.settings["file"], one.contestant): one.reason for one in found if isinstance(one, Skipped)}
    reason = "computes in fp32 whatever the file permits, so it is the fp32 file's row"
    measured = {(one.settings["file"], one.contestant, one.unit) for one in found if not isinstance(one, Skipped)}
    expected = {("fp32", "ONNX Runtime"), ("fp32", "OpenVINO"), ("cpu", "ONNX Runtime")}
    if has_bf16():
        expected |= {("bf16", "OpenVINO")}
        assert skipped.pop(("bf16", "ONNX Runtime")) == reason
    assert measured == {(*place, unit) for place in expected for unit in ("ms", "MB")}
    assert skipped.pop(("cpu", "OpenVINO")).startswith("device openvino: cpu.onnx is written for CPUs and ONNX Runtime")
    first = found[[type(one) is Skipped for one in found].index(False)]
    assert first.settings == {
        "base": 2, "file": "fp32", "batch": 1, "height": 32, "width": 48, "device": "cpu", "threads": 1
    }  # fmt: skip
    assert (first.group, first.values) == ("which 2", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    assert first.facts["file_mb"] == (tmp_path / "which-2" / "fp32.onnx").stat().st_size / 1e6
    assert (first.facts["auto"], first.facts["weights"]) == (True, "random weights")


def test_the_tables_compare_with_the_fp32_file_in_onnx_runtime(found):
    kept = tuple(one for one in found if not isinstance(one, Skipped))
    results = Results(environment={}, method={}, disturbance=None, measurements=kept)
    text = markdown(results)
    assert "Random weights, so without Dice: 2,4,8,16." in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| 2,4")]
    assert rows[0][:6] == ["2,4,8,16", "fp32", "ONNX Runtime", "auto", "3.50", "1"]
    assert rows[1][:6] == ["2,4,8,16", "fp32", "OpenVINO", "", "7.00", "0.50 (0.50 to 0.50)"]
    short = short_table(results)
    assert [cell.strip() for cell in short[0].split("|")[1:-1]] == ["file and engine", "2,4,8,16"]
    assert [cell.strip() for cell in short[3].split("|")[1:-1]] == ["fp32 in OpenVINO", "0.50"]


def test_files_beside_a_trained_checkpoint_are_taken_and_judged_by_their_masks(
    thin, model, known, tmp_path, monkeypatch
):
    monkeypatch.setattr(which, "KINDS", {"fp32": {}})
    monkeypatch.setattr(which, "ENGINES", {"ONNX Runtime": "cpu"})
    found = measure(model, tmp_path, data=thin, trained=[thin / "model.pth"], threads=1, rounds=6)
    assert [one.unit for one in found] == ["ms", "Dice", "MB"]
    assert {one.facts["weights"] for one in found} == {"trained"} and {one.settings["base"] for one in found} == {4}
    assert list((tmp_path / "which-4").iterdir()) == []
    expected = evaluate(thin / "model.onnx", find_pairs(thin, "val"), device="cpu").image_dice
    assert found[1].median == pytest.approx(expected, abs=1e-12)
    assert found[1].facts["widths"] == "4,8"
    assert serves(thin / "model.onnx", "fp32") and not serves(thin / "model.onnx", "bf16")


def test_two_networks_of_a_width_are_refused(thin, model, tmp_path):
    with pytest.raises(ConfigError) as caught:
        measure(model, tmp_path, trained=[thin / "model.pth", thin / "other.pth"], threads=1)
    assert str(caught.value) == (
        f"--trained {thin / 'other.pth'}: is a second network of first width 4, expected one of each"
    )


def test_without_pytorch_nothing_is_exported(model, known, tmp_path, monkeypatch):
    monkeypatch.setattr(which, "torch_missing", lambda: "needs PyTorch")
    found = measure(model, tmp_path, bases=(2,), threads=1)
    assert {one.reason for one in found} == {
        "exporting needs PyTorch; or give checkpoints with their files beside them"
    }
    assert [one.settings["file"] for one in found] == ["fp32", "cpu", "fp16", "u8", "bf16"]


def test_a_file_that_does_not_run_in_bf16_is_no_row_of_it(thin):
    file = which.WhichFile(base=4, kind="bf16", engine="ONNX Runtime", path=thin / "model.onnx", weights="trained")
    with pytest.raises(DeviceError, match=r"^computes in fp32 whatever the file permits"):
        which.open_file(file, 1, None)


def test_the_table_of_the_guide_is_that_of_the_report():
    assert PAGE.read_text() == page(), "docs/export.md is out of date; run: make reference"
