"""The permission to compute in bf16: how it is judged, where it is written, and who may use it."""

import json
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from onnx_files import gate_of, permission_of

from export import export_onnx
from export.console_report import check_line
from export.precision import bf16
from export.precision.bf16 import judge_bf16, require_bf16
from export.precision.gate import bf16_is_good, bf16_refusal
from export.proof import cases, expected_answers, make_golden
from export.refusal import refusal_path
from export.verify import check_file, row_fault
from runtime.card import Parity, ProofRow
from runtime.devices import openvino
from runtime.errors import ConfigError, DeviceError, ProofError
from runtime.model_file.metadata import read_metadata
from runtime.model_file.reader import read_model
from runtime.options import ProviderOptions
from runtime.predictor import Predictor
from runtime.support.cpu_count import has_avx512
from unet_core.reporting.progress import Display

QUIET = Display(quiet=True)

computes_bf16 = pytest.mark.skipif(
    not (find_spec("openvino") and has_avx512()), reason="needs openvino and AVX-512, which compute bf16"
)


@pytest.fixture(scope="module")
def judged(trained):
    """Judge the trained network: the verdict, and the doubt."""
    golden = make_golden(trained.segmenter, trained.card, candidates=0)
    pictures = list(expected_answers(trained.exact, cases(trained.card, trained.samples.pictures(2))))
    return judge_bf16(trained.graph, trained.exact, trained.card, trained.samples, pictures, golden, None, QUIET)


@computes_bf16
def test_the_figures_are_of_bf16_itself(trained, judged, tmp_path):
    """By OpenVINO without any code of ours between."""
    permission, doubt = judged
    onnx.save(trained.graph, tmp_path / "plain.onnx")
    compiled = openvino.core().compile_model(tmp_path / "plain.onnx", "CPU", {openvino.PRECISION: "bf16"})
    flipped = pixels = 0
    errors = []
    for index in range(len(trained.samples.measured)):
        picture = trained.samples.measured[index][0][None]
        answer, exact = compiled(picture)[0], trained.exact(picture)
        flipped += np.count_nonzero((answer > 0.5) != (exact > 0.5))
        pixels += exact.size
        errors.append(np.abs(answer - exact).max())
    assert permission.gate.flipped == flipped / pixels
    assert (permission.gate.count, permission.gate.images, permission.max_flipped) == (6, "data", 1e-4)
    assert permission.gate.image_dice_fp32 > 0.98 and doubt is None
    assert 1e-4 < max(errors) < 0.05
    assert permission.max_abs_error >= max(errors[:2]) > 1e-4
    assert permission.golden_error > 1e-4
    assert permission.provider.startswith("OpenVINO 20") and permission.provider.endswith(" in bf16")


@pytest.mark.parametrize(
    ("limit", "gate", "good"),
    [
        (1e-4, {"flipped": 1e-4}, True),
        (1e-4, {"flipped": 1.01e-4}, False),
        (2e-3, {"flipped": 1.9e-3}, True),
        (None, {"flipped": 0.1, "image_dice": 0.95, "image_dice_fp32": 0.951}, True),
        (None, {"flipped": 0.0, "image_dice": 0.95, "image_dice_fp32": 0.9521}, False),
        (None, {"flipped": 0.006}, False),
    ],
)
def test_the_limit_is_on_pixels_unless_it_is_that_of_int8(limit, gate, good):
    assert bf16_is_good(gate_of(**gate), limit) == good


@pytest.mark.parametrize(
    ("permission", "doubt", "text"),
    [
        (
            permission_of(False, 1e-4, flipped=0.000512),
            None,
            "bf16 loses too much: it flips 0.0512% of the pixels, allowed are 0.0100% of the pixels; leave --allow "
            "bf16 out, or permit this loss by --max-flipped 0.06%",
        ),
        (
            permission_of(False, None, flipped=0.01, image_dice=0.94, image_dice_fp32=0.95),
            None,
            "bf16 loses too much: it flips 1.0000% of the pixels and takes the image Dice from 0.9500 to 0.9400, "
            "allowed are 0.2 points of image Dice; leave --allow bf16 out, or permit this loss by --max-flipped 1%",
        ),
        (
            permission_of(False, None, flipped=0.01),
            None,
            "bf16 loses too much: it flips 1.0000% of the pixels, allowed are 0.50% of the pixels; leave --allow bf16 "
            "out, or permit this loss by --max-flipped 1%",
        ),
        (permission_of(False), "the images show nothing", "bf16 is not permitted: the images show nothing"),
    ],
)
def test_a_refusal_names_the_loss_and_what_permits_it(permission, doubt, text):
    assert bf16_refusal(permission, doubt) == text


@pytest.mark.parametrize(
    ("missing", "error", "message"),
    [
        (
            "is_installed",
            ConfigError,
            "--allow bf16: is judged by OpenVINO, which is not installed; pip install openvino, or leave it out",
        ),
        (
            "has_avx512",
            DeviceError,
            "--allow bf16: this CPU cannot compute bf16, not even slowly; give the same command on a machine with "
            "AVX-512 (avx512bw in /proc/cpuinfo), or leave out --allow bf16",
        ),
    ],
)
def test_a_machine_that_cannot_judge_says_so_before_the_work(trained, tmp_path, monkeypatch, missing, error, message):
    for name in ("is_installed", "has_avx512"):
        monkeypatch.setattr(bf16, name, lambda name=name: name != missing)
    with pytest.raises(error) as caught:
        export_onnx(trained.checkpoint, tmp_path / "model.onnx", allow="bf16", data=trained.data)
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


def test_openvino_that_computes_otherwise_is_refused(monkeypatch, tmp_path, trained):
    monkeypatch.setattr(bf16, "is_installed", lambda: True)
    monkeypatch.setattr(bf16, "has_avx512", lambda: True)
    require_bf16()

    class InF32:
        def __init__(self, request, *, bf16):
            assert bf16
            self.arithmetic = "f32"

    monkeypatch.setattr(bf16, "OpenVinoSession", InF32)
    with pytest.raises(DeviceError, match=r"^--allow bf16: OpenVINO computes all layers in f32 here; give the same "):
        bf16.open_in_bf16(tmp_path / "model.onnx", trained.card)


@computes_bf16
def test_the_file_carries_the_verdict_and_earlier_versions_read_it(trained, at_hand, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "has_bf16", lambda: True)
    report = export_onnx(at_hand, tmp_path / "model.onnx", allow="bf16", max_flipped=0.5, data=trained.data)
    card, _ = read_model(report.path)
    assert card == report.card and card.allows_bf16 and card.bf16.max_flipped == 0.5
    metadata = read_metadata(report.path)
    assert "bf16" not in json.loads(metadata["unet.card"])  # versions before it refuse unknown fields there
    assert json.loads(metadata["unet.golden"])["bf16"]["gate"]["count"] == 6
    with Predictor(report.path) as predictor, Predictor(report.path, "cpu") as other:
        found = predictor.report
        assert (found.device, found.arithmetic, found.integrity) == ("openvino", "bf16", "verified")
        limit = 1e-4 + 2 * card.bf16.golden_error
        assert 1e-4 < found.golden_error <= found.golden_limit == pytest.approx(limit)
        assert str(found).startswith("openvino: OpenVINO, layers in bf16, nodes: ")
        picture = trained.samples.measured[0][0][None]
        assert 1e-5 < np.abs(predictor.run(picture) - other.run(picture)).max() < 2 * card.bf16.max_abs_error
        assert other.report.arithmetic == "" and other.report.golden_error < 1e-5
    for device, options, expected in (
        ("auto", ProviderOptions(bf16=False), ("cpu", "")),
        ("openvino", ProviderOptions(bf16=False), ("openvino", "f32")),
    ):
        with Predictor(report.path, device, options=options) as predictor:
            assert (predictor.report.device, predictor.report.arithmetic) == expected
            assert predictor.report.golden_error < 1e-5
    checked = check_file(report.path, checkpoint=at_hand, data=trained.data, device="openvino")
    assert (checked.arithmetic, checked.golden_limit) == ("bf16", found.golden_limit)
    assert set(checked.limits) == {1e-4 + 2 * card.bf16.max_abs_error} and checked.max_abs_error > 1e-4
    line = check_line(checked)
    assert "as when it was exported: off by at most" in line and line.endswith(", on openvino, layers in bf16")
    monkeypatch.setattr(openvino, "has_bf16", lambda: False)
    with Predictor(report.path) as automatic, Predictor(report.path, "openvino") as named:
        assert automatic.report.device == "cpu" and named.report.arithmetic == "f32"


@computes_bf16
def test_a_file_that_loses_too_much_is_not_written(trained, at_hand, tmp_path):
    file = tmp_path / "model.onnx"
    with pytest.raises(ProofError, match=r"^.*model\.onnx: not written, bf16 loses too much: it flips 0\.\d{4}% of "):
        export_onnx(at_hand, file, allow="bf16", max_flipped=0.0, data=trained.data)
    assert not file.exists()
    kept = json.loads(refusal_path(file).read_text())["card"]["bf16"]
    assert kept["gate"]["flipped"] > 0 and kept["gate"]["passed"] is False


@computes_bf16
def test_the_other_layers_of_an_int8_file_may_be_bf16(trained, at_hand, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "has_bf16", lambda: True)
    options = {"precision": "int8", "allow": "bf16", "data": trained.data}
    with pytest.raises(ConfigError, match=r"^--allow bf16: all layers of this file are int8, so there is nothing to "):
        export_onnx(at_hand, tmp_path / "u8.onnx", **options)
    report = export_onnx(at_hand, tmp_path / "u8.onnx", **options, keep=["final_conv"])
    assert report.card.bf16.max_flipped is None and report.card.proof.gate.passed
    assert report.card.bf16.provider.endswith(" in u8 and bf16")
    with Predictor(report.path, "openvino") as predictor:
        assert predictor.report.arithmetic == "u8 and bf16"
        assert predictor.report.golden_error <= predictor.report.golden_limit
    with Predictor(report.path, "openvino", options=ProviderOptions(bf16=False)) as predictor:
        assert predictor.report.arithmetic == "u8 and f32"


@pytest.mark.parametrize(("flipped", "found"), [(0.0007, ""), (0.0008, "flips 0.0800% of the pixels of an image")])
def test_a_check_in_bf16_bounds_the_pixels_that_flip(trained, flipped, found):
    """Twice what the gate saw, and its limit: 2 * 0.0001 + 0.0005."""
    row = ProofRow(
        shape=(1, *trained.card.input.size),
        images="data",
        parity=Parity(max_abs_error=0.01, flipped=flipped, iou=0.9, flip_distance=0.01),
    )
    allowed = permission_of(flipped=1e-4)
    fault = row_fault(trained.card, row, 0.04, "PyTorch", of_network=True, bf16=allowed)
    assert fault.startswith(found) and bool(fault) == bool(found)
    assert row_fault(trained.card, row, 0.04, "PyTorch", of_network=True) == ""
