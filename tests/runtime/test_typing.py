"""A user's file, checked by mypy --strict and by pyright as they do by default: py.typed keeps its word."""

import json
import os
import subprocess
import sys

import pytest

USER = """
import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime import *

paths = sorted(Path("images").glob("*.png"))
names = [str(path) for path in paths]
arrays = [np.zeros((4, 5, 3), np.uint8)]
pictures: list[Image.Image] = []

predictor = Predictor("model.onnx", device="cpu", threads=2, limits=Limits(pixels=10), batching=Batching(max_batch=2))
one: Segmentation = predictor.predict(paths[0])
several: list[Segmentation] = predictor.predict(paths)
several = predictor.predict(names)
several = predictor.predict(arrays, channels="BGR")
several = predictor.predict(pictures)
several = predictor.predict((paths[0], "a.png"))
several = predictor.predict(["a.png", arrays[0], b"bytes"])
several = predictor.predict_batch(paths, batch_size=2)
for result in predictor.stream(names, errors="raise"):
    mask: NDArray[np.uint8] = result.mask
for path in predictor.stream(paths, then=lambda source, result: result.save(source.with_suffix(".png"))):
    suffix: str = path.suffix
for answer in predictor.stream(paths, errors="yield"):
    if not isinstance(answer, Exception):
        area: int = answer.area()
one = asyncio.run(predictor.predict_async(arrays[0], size=(8, 8), tile=(4, 4)))
one = predictor.submit(io.BytesIO()).result()
one = predict("a.png", Path("model.onnx").read_bytes(), device=0)
saved: Path = one.save("mask.png")
one.save(io.BytesIO(), format="png")
errors: list[type[UnetError]] = [ImageError, ModelError]
"""


@pytest.fixture
def user(tmp_path):
    path = tmp_path / "user.py"
    path.write_text(USER)
    return path


def test_mypy_finds_nothing_in_a_users_file(user, root, request):
    cache = request.config.cache.mkdir("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", user],
        env=os.environ | {"MYPYPATH": str(root), "MYPY_CACHE_DIR": str(cache)},
        cwd=user.parent,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("Success: no issues found in 1 source file\n", "")


def test_pyright_finds_nothing_in_a_users_file(user, root):
    settings = {
        "typeCheckingMode": "standard",
        "extraPaths": [str(root)],
        "include": [user.name],
        "pythonVersion": "3.11",
    }
    (user.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(  # the package pyright would download node
        [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=user.parent,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert [f"{one['range']['start']['line']}: {one['message']}" for one in found["generalDiagnostics"]] == []
    assert found["summary"]["filesAnalyzed"] == 1
