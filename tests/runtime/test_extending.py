"""docs/design.md, "How to add": each recipe is tried with a throw-away entry."""

import pytest
from asked import IMAGES
from click.testing import CliRunner
from devices import CPU as CPU_DEVICE

from runtime.commands.predict import predict
from runtime.devices.backend import Backend
from runtime.devices.cpu import CPU_CHAIN
from runtime.devices.registry import BACKENDS
from runtime.devices.session import Session
from runtime.errors import DeviceError
from runtime.predictor import Predictor


def open_slate(request):
    """A device that computes on the CPU, and calls itself otherwise."""
    return request.checked(Session(request.open_inference(CPU_CHAIN), request.device, request.card))


SLATE = Backend(
    kind="slate",
    provider="CPUExecutionProvider",
    tolerance=1e-4,
    unavailable_reason=lambda device: "slate has no drive 9" if device.index == 9 else None,
    open=open_slate,
)


def test_a_device_is_one_entry(models, answers, monkeypatch, tmp_path):
    with pytest.raises(DeviceError, match="device 'slate:2': expected auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N"):
        Predictor(models["conv"], "slate:2")
    monkeypatch.setitem(BACKENDS, "slate", SLATE)
    with Predictor(models["conv"], "slate:2") as predictor:
        assert (predictor.report.device, predictor.report.provider) == ("slate:2", "CPUExecutionProvider")
        assert abs(predictor.run(IMAGES[0][None]) - answers["conv"](IMAGES[0][None])).max() < 1e-5
    with pytest.raises(DeviceError, match=r"^device slate:9: slate has no drive 9$"):
        Predictor(models["conv"], "slate:9")
    with pytest.raises(DeviceError, match="expected auto, slate, slate:N, cpu, cuda"):
        Predictor(models["conv"], "brick")
    assert Predictor(models["conv"], "cpu").report.device == str(CPU_DEVICE) == "cpu"
    done = CliRunner().invoke(predict, [str(models["conv"]), "x", "-o", str(tmp_path / "out"), "--device", "slate:9"])
    assert done.exit_code == 2
