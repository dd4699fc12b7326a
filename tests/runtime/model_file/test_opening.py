"""Opening a model's file: what cannot be an ONNX file is refused by name, before its fields are read."""

import os
import re

import pytest
from PIL import Image

from runtime.errors import ModelError
from runtime.model_file.opening import open_wire


def check_refused(path, message):
    with pytest.raises(ModelError, match=message), open_wire(path):
        pass


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def test_file_above_two_gigabytes_is_refused_by_its_size(path):
    with open(path, "wb") as file:
        file.truncate(2**31)
    check_refused(path, "has 2147483648 bytes, expected at most 2147483647")


def test_empty_file_says_so(path):
    path.write_bytes(b"")
    check_refused(path, r"model\.onnx: is empty \(0 bytes\), expected an ONNX file$")


def test_missing_file_says_how_to_make_it(tmp_path):
    check_refused(tmp_path / "gone.onnx", r"gone\.onnx: no such file; make it with: unet-export model\.pth$")


def test_folder_says_so(tmp_path):
    check_refused(tmp_path, r": is a folder, expected an \.onnx file$")


@pytest.mark.parametrize("name", ["x" * 300 + ".onnx", "file/model.onnx"])
def test_impossible_path_is_a_model_error(tmp_path, name):
    (tmp_path / "file").write_bytes(b"x")
    check_refused(tmp_path / name, r"cannot be read|no such file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_is_not_waited_for(path):
    os.mkfifo(path)
    check_refused(path, r"is a pipe or a device, expected an \.onnx file$")


def test_format_of_onnx_runtime_itself_is_refused(path):
    path.write_bytes(b"\x18\x00\x00\x00ORTM:\x00")
    check_refused(path, r"is in ONNX Runtime's own format, expected an \.onnx file$")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WebP"])
def test_image_is_named_in_the_place_of_a_model(path, form):
    Image.new("RGB", (8, 8)).save(path, form)
    check_refused(
        path, rf"model\.onnx: looks like an image \({form}\), expected an \.onnx file; are model and image swapped\?$"
    )


def test_checkpoint_is_refused_with_the_command_that_converts_it(path):
    path.write_bytes(b"PK\x03\x04 a checkpoint")
    command = re.escape(f"unet-export {path}")
    check_refused(path, f"looks like a PyTorch checkpoint; convert it with: {command}$")
    odd = path.with_name("$(id) x.onnx")
    path.rename(odd)
    check_refused(odd, re.escape(f"convert it with: unet-export '{odd}'") + "$")
