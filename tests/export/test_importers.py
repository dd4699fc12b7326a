"""Exported files in other programs: an older ONNX Runtime, OpenCV 4 and 5, and onnx's own reference of every operator.

Each answer is compared with that of the ONNX Runtime in use, on the CPU. Older programs lie in a folder of their own,
which `make setup` fills, and run as processes that see nothing else.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from networks import make_card, make_network
from onnx.reference import ReferenceEvaluator

from export.graph import build_graph
from export.options import with_fixed_size
from export.precision.calibration import calibrate
from export.precision.for_cpus import for_cpus, range_of_pictures
from export.precision.fp16 import to_half
from export.precision.int8 import quantisable, to_int8, values_to_calibrate
from export.proof import graph_run
from runtime.model_file.golden import golden_image, synthetic_image
from unet_core.model import Segmenter
from unet_core.reporting.progress import Display

FOLDER = Path(sys.prefix) / "importers"
SCRIPTS = Path(__file__).parents[1] / "importers"
NETWORKS = {
    "fp32": {},
    "several classes, bilinear": {"widths": (3, 5, 9), "up": "bilinear", "classes": 3},
    "grey": {"widths": (4, 6), "in_channels": 1},
}
KINDS = (*NETWORKS, "fp16", "u8")
SHAPES = ((1, 32, 48), (2, 45, 61))
"""A shape that needs no padding, and one that does."""

TOLERANCES = {"fp16": 1e-2, "u8": 0.1}
"""Tolerance of a probability below fp32. A program may compute fp16 in fp32, or round after every layer; a value that
lies between two integers may become either of them, in every layer."""

EXACT = 1e-5
"""Tolerance in fp32: other kernels sum in another order."""

SMALLEST_SPREAD = 0.5
"""Least difference of an answer's probabilities: flat answers would prove nothing."""


@pytest.fixture(scope="module", autouse=True)
def _shared_exports(shared_exports):
    pass


@cache
def graph_in(kind, shape=None):
    """An exported graph, of one shape if it is given."""
    network = make_network(**NETWORKS.get(kind, {}))
    segmenter = Segmenter(network, make_card(network)).eval()
    with torch.inference_mode():
        logits = segmenter.logits(torch.from_numpy(golden_image(network.config.in_channels)[None]))
        centred = logits - logits.mean(dim=(2, 3), keepdim=True)
        network.final_conv.bias -= logits.mean(dim=(0, 2, 3))
        for parameter in network.final_conv.parameters():
            parameter /= centred.std()
    card = with_fixed_size(make_card(network), shape)
    model = build_graph(Segmenter(network, card).eval(), card)
    if kind == "fp16":
        return to_half(model)
    if kind == "u8":
        known, model = range_of_pictures(model), for_cpus(model)
        layers = quantisable(model, kind)
        pictures = [synthetic_image(*card.input.size, 3, seed) for seed in range(2)]
        calibrated = calibrate(model, values_to_calibrate(model, layers, kind), pictures, Display(quiet=True))
        ranges = {**calibrated.mean, **known}
        return to_int8(model, layers, ranges, kind)
    return model


def pictures_for(kind, shape):
    return np.stack([synthetic_image(*shape[1:], 1 if kind == "grey" else 3, seed) for seed in range(shape[0])])


def answer_of(program, model, images, folder):
    """The answer of an older program and its version; it has its folder and the standard library alone."""
    if not (FOLDER / ("cv2" if program == "opencv" else program)).is_dir():
        pytest.skip(f"{FOLDER} has no older importers; make setup installs them, for Python below 3.13")
    onnx.save(model, folder / "model.onnx")
    np.save(folder / "images.npy", images)
    script = str(SCRIPTS / f"{program}.py")
    start = f"import runpy, sys; sys.path.insert(0, {str(FOLDER)!r}); runpy.run_path({script!r})"
    files = [str(folder / name) for name in ("model.onnx", "images.npy", "answers.npy")]
    command = [sys.executable, "-I", "-S", "-c", start, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return np.load(folder / "answers.npy"), done.stdout.strip()


def assert_answers_as_ours(kind, found, model, images):
    expected = graph_run(model)(images)
    assert np.ptp(expected) > SMALLEST_SPREAD
    assert found.shape == expected.shape and found.dtype == np.float32
    errors, tolerance = np.abs(found - expected), TOLERANCES.get(kind, EXACT)
    assert errors.max() <= tolerance and errors.mean() <= tolerance / 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [None, SHAPES[1]], ids=["any shape", "one shape"])
def test_the_oldest_onnx_runtime_that_knows_the_opset(tmp_path, kind, shape):
    model, images = graph_in(kind, shape), pictures_for(kind, SHAPES[1])
    found, version = answer_of("onnxruntime", model, images, tmp_path)
    assert version.startswith("1.17.")
    assert_answers_as_ours(kind, found, model, images)


def test_it_refuses_a_newer_ir_version(tmp_path):
    """The reason for writing the lowest one: PyTorch writes 10."""
    model = onnx.ModelProto.FromString(graph_in("fp32").SerializeToString())
    assert model.ir_version == 9
    model.ir_version = 10
    with pytest.raises(RuntimeError, match="Unsupported model IR version: 10, max supported IR version: 9"):
        answer_of("onnxruntime", model, pictures_for("fp32", SHAPES[0]), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_opencv_4_takes_files_of_one_shape(tmp_path, kind, shape):
    model, images = graph_in(kind, shape), pictures_for(kind, shape)
    found, version = answer_of("opencv", model, images, tmp_path)
    assert version.startswith("4.")
    assert_answers_as_ours(kind, found, model, images)


def test_opencv_4_takes_no_others(tmp_path):
    with pytest.raises(RuntimeError, match="isDynamicShape"):
        answer_of("opencv", graph_in("fp32"), pictures_for("fp32", SHAPES[0]), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [None, *SHAPES], ids=str)
def test_opencv_5_takes_files_of_any_shape(tmp_path, kind, shape):
    if int(cv2.__version__.partition(".")[0]) < 5:
        pytest.skip(f"OpenCV {cv2.__version__} is installed")
    model, images = graph_in(kind, shape), pictures_for(kind, shape or SHAPES[1])
    onnx.save(model, tmp_path / "model.onnx")
    network = cv2.dnn.readNetFromONNX(str(tmp_path / "model.onnx"))
    network.setInput(images, "image")
    assert_answers_as_ours(kind, network.forward("probability"), model, images)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [None, (1, 13, 18)], ids=str)
def test_onnx_s_reference_of_every_operator(kind, shape):
    model, images = graph_in(kind, shape), pictures_for(kind, (1, 13, 18))
    (found,) = ReferenceEvaluator(model).run(["probability"], {"image": images})
    assert_answers_as_ours(kind, found, model, images)
