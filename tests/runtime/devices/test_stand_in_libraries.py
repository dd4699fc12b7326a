"""Libraries of CUDA that are missing or installed in another folder, with the stand-in's, and what sessions print."""

import shutil
import subprocess

import pytest
from stand_in import StandIn

from runtime.devices.nvidia import needed_libraries

pytestmark = pytest.mark.stub

NAMES = [library.name for library in needed_libraries("cuda", "13.0")]

WITHOUT_PIP = "import sys; sys.modules['nvidia'] = None\n"
"""Hides the libraries that pip has installed on this machine."""


@pytest.fixture
def part(stand_in, tmp_path):
    """Make a stand-in without some of its libraries, or skip where the system has them."""
    system = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout

    def make(*missing):
        if any(f"{name} " in system for name in missing):
            pytest.skip(f"{' or '.join(missing)} is installed in the system's folders")
        folder = tmp_path / "part"
        folder.mkdir()
        for library in stand_in.folder.glob("lib*.so.*"):
            if library.name not in missing:
                shutil.copy(library, folder)  # no link: the folder of the cuDNN in use is looked through, too
        return StandIn(folder)

    return make


CLAIMED = """
import json, warnings
from runtime import Predictor
from runtime.devices.availability import unavailable_reason
from runtime.devices.device import Device

warnings.simplefilter("ignore")
skipped = dict(Predictor(sys.argv[1], "auto").report.skipped)
print(json.dumps([unavailable_reason(Device(kind="cuda")), skipped["cuda"]]))
"""


@pytest.mark.parametrize(
    ("missing", "package"),
    [
        ("libcurand.so.10", "nvidia-curand"),
        ("libcudnn.so.9", "nvidia-cudnn-cu13"),
        ("libcudnn_graph.so.9", "nvidia-cudnn-cu13"),
    ],
)
def test_cuda_is_not_claimed_without_one_of_its_libraries(part, models, missing, package):
    ran = part(missing).run(WITHOUT_PIP + CLAIMED, models["conv"])
    told = (
        f"{missing}: cannot open shared object file: No such file or directory; "
        f"install unet-deploy with its extra [gpu], which brings PyPI's {package}"
    )
    assert ran.answer == [told, told]
    assert ran.stderr == ""


ELSEWHERE = """
import json, sys
from on_stand_in import images, open_on
from runtime.devices.nvidia import library_problem

problem = library_problem("cuda")
open_on(sys.argv[1]).run(images(1, 8, 8))
mapped = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if line.count("/")}
print(json.dumps([problem, sorted(path for path in mapped if "/libcudnn" in path)]))
"""


def test_libraries_are_found_in_another_folder_than_onnx_runtime(stand_in, part, models, tmp_path):
    """As `pip install --target` leaves them."""
    cudnn = ("libcudnn.so.9", "libcudnn_graph.so.9", "libcudnn_ops.so.9")
    other = part(*cudnn)
    folder = tmp_path / "elsewhere" / "nvidia" / "cudnn" / "lib"
    folder.mkdir(parents=True)
    for name in cudnn:
        shutil.copy(stand_in.folder / name, folder)
    path = other.environment()["PYTHONPATH"]
    ran = other.run(ELSEWHERE, models["conv"], PYTHONPATH=f"{tmp_path / 'elsewhere'}:{path}")
    assert ran.answer == [None, [str(folder / "libcudnn.so.9")]]  # cuDNN itself loads its parts
    assert ran.calls.count("cudnn execute") == 2


PRINTED = """
import logging, os, sys
import numpy as np
import onnxruntime
from on_stand_in import images, open_on, set_memory

model = sys.argv[1]

def section(name):
    os.write(2, f"--- {name}\\n".encode())

for device in ("cuda", "cuda:1"):
    for options in ({}, {"cuda_graphs": True}):
        section(f"{device} {options}")
        session = open_on(model, device, **options)
        for height in (8, 12, 8):
            session.run(images(2, height, 16))
        set_memory(2**20 if "1" in device else 2**21)
        for size in (256, 1024):
            try:
                session.run(images(8, size, size))
            except Exception as error:
                print(error)
        set_memory(2**34)
        session.close()
        del session
section("another one's")
onnxruntime.InferenceSession(model, providers=[("CUDAExecutionProvider", {"device_id": "1"})])
section("debug")
logging.getLogger("runtime").setLevel(logging.DEBUG)
open_on(model, "cuda:1")
"""
LINE = "No registered plugin EP device found for 'CUDAExecutionProvider' with device_id=1"


def test_nothing_of_onnx_runtime_is_printed_unless_asked_for(stand_in, models):
    """Opening, running, halving in a full memory and closing; other sessions of the process warn as before."""
    ran = stand_in.run(PRINTED, models["conv"], STAND_IN_DEVICES="2")
    sections = dict(part.split("\n", 1) for part in ran.stderr.split("--- ")[1:])
    assert len(sections) == 6
    assert [text for text in list(sections.values())[:4] if text] == []
    assert sections["another one's"].count(LINE) == sections["debug"].count(LINE) == 1
    assert ran.stdout.count("; free memory on the GPU") + ran.stdout.count(", or free memory on the GPU") == 8


def test_names_are_those_that_the_provider_is_linked_against(stand_in):
    """The stand-in has read them out of ONNX Runtime's own library."""
    linked = {path.name for path in stand_in.folder.glob("lib*.so.*")} - {"libcuda.so.1"}
    assert linked == set(NAMES)


FAILING = """
import sys
import onnxruntime
from on_stand_in import open_on

onnxruntime.set_default_logger_severity(int(sys.argv[2]))
try:
    open_on(sys.argv[1])
except Exception as error:
    print(error)
"""


def test_a_copy_that_fails_is_printed_unless_the_default_logger_is_silent(stand_in, models):
    told, silent = (stand_in.run(FAILING, models["conv"], level, STAND_IN_NO_COPIES="1") for level in (2, 4))
    assert told.stderr.count("[E:onnxruntime:Default, cuda_call.cc") == told.stderr.count("CUDA failure 719") == 1
    assert "CUDA failure 719" in silent.stdout and silent.stderr == ""
