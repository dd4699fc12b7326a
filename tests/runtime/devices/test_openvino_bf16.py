"""bf16 in OpenVINO: only where the card permits it, the CPU is made for it, and the caller does not refuse."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from devices import images

from runtime.card import Bf16Permission, Gate
from runtime.devices import openvino
from runtime.devices.backend import SessionRequest
from runtime.devices.device import Device
from runtime.devices.openvino import OpenVinoSession
from runtime.errors import DeviceError
from runtime.model_file.digest import DIGEST_KEY, seal
from runtime.model_file.golden import GOLDEN_KEY, Golden
from runtime.model_file.metadata import read_metadata
from runtime.model_file.reader import read_model
from runtime.options import ProviderOptions
from runtime.predictor import Predictor
from runtime.support.cpu_count import has_avx512

FILES = Path(__file__).parents[2] / "data/v0.1/models"
SIZE = (32, 48)  # of their cards

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino, which is no dependency")


def model(kind):
    return FILES / f"{kind}.onnx"


def permitted(file, target, passed=True):
    """Copy a file, with the permission to compute it in bf16."""
    gate = Gate(
        images="data", count=9, flipped=0.0, image_dice=None, image_dice_fp32=None, kept=(), passed=passed
    )  # fmt: skip
    permission = Bf16Permission(
        gate=gate, max_flipped=1e-4, golden_error=0.02, max_abs_error=0.02, provider="OpenVINO 2026.4 in bf16"
    )
    golden = Golden.from_json(read_metadata(file)[GOLDEN_KEY])
    network = onnx.load(file)
    for entry in [one for one in network.metadata_props if one.key in (GOLDEN_KEY, DIGEST_KEY)]:
        network.metadata_props.remove(entry)
    network.metadata_props.add(key=GOLDEN_KEY, value=replace(golden, bf16=permission).to_json())
    onnx.save(network, target)
    seal(target)
    return target


@pytest.mark.parametrize(
    ("kind", "passed", "cpu", "options", "bf16"),
    [
        ("fp32", True, True, {}, True),
        ("fp32", True, False, {}, False),
        ("fp32", True, True, {"bf16": False}, False),
        ("fp32", False, True, {}, False),
        ("several", True, True, {}, True),
        ("int8-u8", True, True, {}, True),
    ],
)
def test_bf16_needs_the_card_the_cpu_and_the_caller(tmp_path, monkeypatch, kind, passed, cpu, options, bf16):
    monkeypatch.setattr(openvino, "has_bf16", lambda: cpu)
    monkeypatch.setattr(openvino, "has_vnni", lambda: False)
    asked = []

    class Recorded(OpenVinoSession):
        def __init__(self, request, *, bf16):
            asked.append(bf16)
            super().__init__(request)

    monkeypatch.setattr(openvino, "OpenVinoSession", Recorded)
    file = permitted(model(kind), tmp_path / "model.onnx", passed)
    options = ProviderOptions(**options)
    with Predictor(file, options=options) as automatic, Predictor(file, "openvino", options=options):
        assert (automatic.report.device == "openvino") == bf16
    assert asked == ([True, True] if bf16 else [False])
    assert openvino.is_better_than_cpu(automatic.card, options) == bf16
    monkeypatch.setattr(openvino, "find_spec", lambda _: None)
    assert not openvino.is_better_than_cpu(automatic.card, options)


def test_no_file_without_permission_is_computed_in_bf16(monkeypatch):
    monkeypatch.setattr(openvino, "has_bf16", lambda: True)
    for kind in ("fp32", "fp16"):
        with Predictor(model(kind), "openvino") as predictor, Predictor(model(kind)) as automatic:
            assert predictor.report.arithmetic == "f32" and automatic.report.device == "cpu"
    with Predictor(model("int8-u8"), "openvino") as predictor:
        assert predictor.report.arithmetic == "u8 and f32"


@pytest.mark.skipif(not has_avx512(), reason="needs AVX-512, which computes bf16")
def test_in_bf16_the_answers_round_and_all_pictures_of_the_sample_are_replayed(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "has_bf16", lambda: True)
    file = permitted(model("fp32"), tmp_path / "model.onnx")
    replayed = []
    monkeypatch.setattr(Golden, "largest_error", lambda self, *of: replayed.append(self) or self.error(*of))
    options = ProviderOptions(fixed_sizes=((40, 56),))
    with Predictor(file, options=options) as predictor, Predictor(file, "cpu") as other:
        assert len(replayed) == 1
        assert (predictor.report.device, predictor.report.arithmetic) == ("openvino", "bf16")
        assert predictor.report.golden_limit == pytest.approx(1e-4 + 2 * 0.02)
        assert "OpenVINO in bf16" in predictor.report.nodes
        for size in (SIZE, (40, 56), (31, 77)):  # the card's, another fixed one, any
            error = np.abs(predictor.run(images(2, *size)) - other.run(images(2, *size))).max()
            assert 1e-5 < error < 0.04, size


def test_openvino_that_answers_in_float32_where_bf16_was_asked_for_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "has_bf16", lambda: True)
    settings = openvino.settings
    monkeypatch.setattr(openvino, "settings", lambda *asked: settings(*asked[:3]))
    file = permitted(model("fp32"), tmp_path / "model.onnx")
    with pytest.raises(DeviceError, match=r"OpenVINO computes in f32 here, expected bf16; take another device"):
        Predictor(file, "openvino")


def test_other_processors_are_never_asked_for_bf16(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "has_bf16", lambda: True)
    asked = []
    monkeypatch.setattr(openvino, "OpenVinoSession", lambda request, bf16: asked.append(bf16))
    card, _ = read_model(permitted(model("fp32"), tmp_path / "model.onnx"))
    for unit, expected in (("GPU", False), ("NPU", False), ("CPU", True)):
        request = SessionRequest(
            path=tmp_path, device=Device(kind="openvino", numbered=False, unit=unit), card=card,
            options=ProviderOptions(), threads=1,
        )  # fmt: skip
        openvino.OPENVINO.open(request)
        assert asked.pop() == expected, unit
