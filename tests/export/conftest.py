"""Faults in a trained network or its data that an export has to notice."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from trained import SIZE, write_grey_pair

from export import exporter


@pytest.fixture(scope="session", autouse=True)
def _shared_exports(shared_exports):
    pass


@pytest.fixture(scope="session")
def flat(tmp_path_factory):
    """The wrong images to calibrate on: training images of one grey, validation images as they should be."""
    folder = tmp_path_factory.mktemp("flat")
    for index in range(6):
        write_grey_pair(folder, "val", f"val{index}", seed=100 + index)
        write_grey_pair(folder, "train", f"car{index}", seed=index)
        Image.fromarray(np.full((*SIZE, 3), 128, np.uint8)).save(folder / "train_images" / f"car{index}.jpg")
    return folder


@pytest.fixture
def scaled():
    """A copy of a graph with the parameters of some layers multiplied: {name: factor}."""

    def change(model, factors):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for tensor in copy.graph.initializer:
            if tensor.name in factors:
                changed = numpy_helper.to_array(tensor) * np.float32(factors[tensor.name])
                tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        return copy

    return change


@pytest.fixture
def at_hand(trained, tmp_path, monkeypatch):
    """The trained checkpoint in a folder of its own, and its graph, which is not built again."""

    def build(*_):
        copy = onnx.ModelProto()
        copy.CopyFrom(trained.graph)
        return copy

    monkeypatch.setattr(exporter, "build_graph", build)
    return shutil.copy(trained.checkpoint, tmp_path / "model.pth")
