"""docs/design.md, "How to add": each recipe is tried with a throw-away entry."""

import subprocess
import sys

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
from runtime.output_formats import FORMATS, Format
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
    with pytest.raises(
        DeviceError, match="device 'slate:2': expected auto, gpu, gpu:N, cpu, openvino, cuda, cuda:N, tensorrt or"
    ):
        Predictor(models["conv"], "slate:2")
    monkeypatch.setitem(BACKENDS, "slate", SLATE)
    with Predictor(models["conv"], "slate:2") as predictor:
        assert (predictor.report.device, predictor.report.provider) == ("slate:2", "CPUExecutionProvider")
        assert abs(predictor.run(IMAGES[0][None]) - answers["conv"](IMAGES[0][None])).max() < 1e-5
    with pytest.raises(DeviceError, match=r"^device slate:9: slate has no drive 9$"):
        Predictor(models["conv"], "slate:9")
    with pytest.raises(DeviceError, match="expected auto, gpu, gpu:N, slate, slate:N, cpu, openvino, cuda"):
        Predictor(models["conv"], "brick")
    assert Predictor(models["conv"], "cpu").report.device == str(CPU_DEVICE) == "cpu"
    done = CliRunner().invoke(predict, [str(models["conv"]), "x", "-o", str(tmp_path / "out"), "--device", "slate:9"])
    assert done.exit_code == 2


FORMAT = """
from runtime.output_formats import FORMATS, Format

FORMATS["area"] = Format(
    name="area",
    suffixes=(".area",),
    media_type="text/plain",
    write=lambda result, file: file.write(b"%d pixels" % result.mask.sum()),
    thresholded=True,
    help="NAME.area, the number of pixels of the foreground.",
)
from runtime.commands.predict import predict

predict(prog_name="unet-predict")
"""


def test_a_format_is_one_entry(models, tmp_path, root, monkeypatch):
    """The command lists it, writes it, finds it done, and `save` takes its suffix."""
    from PIL import Image

    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")

    def run(*arguments):
        command = [sys.executable, "-c", FORMAT, *map(str, arguments)]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    assert "NAME.area, the number of pixels of the foreground." in " ".join(run("--help").stdout.split())
    arguments = [models["conv"], tmp_path / "a.png", "-o", tmp_path / "out", "--format", "area", "--device", "cpu"]
    assert run(*arguments).returncode == 0
    result = Predictor(models["conv"], "cpu").predict(IMAGES[0])
    assert (tmp_path / "out" / "a.area").read_text() == f"{result.mask.sum()} pixels"
    assert run(*arguments, "--skip-existing").stdout.startswith("nothing to do: 1 of 1 are in")
    area = Format(
        name="area",
        suffixes=(".area",),
        media_type="text/plain",
        write=lambda result, file: file.write(b"%d" % result.mask.sum()),
        thresholded=True,
    )
    monkeypatch.setitem(FORMATS, "area", area)
    result.save(tmp_path / "b.area")
    assert (tmp_path / "b.area").read_text() == str(result.mask.sum())
