"""docs/embedding.md: its examples run as they stand, one after the other, and its reference is true."""

import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import runtime


@pytest.mark.slow
def test_examples_run(models, root, tmp_path):
    text = (root / "docs" / "embedding.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) >= 7
    (tmp_path / "model.onnx").write_bytes(models["conv"].read_bytes())
    (tmp_path / "images").mkdir()
    for seed in range(5):
        pixels = np.random.default_rng(seed).integers(0, 256, (30, 40 + seed % 2, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{seed}.png")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "5 masks; image: is not an image of a known format" in done.stdout
    assert "(30, 40, 4)" in done.stdout
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [f"{seed}.png" for seed in range(5)]


def test_the_reference_has_the_signatures(root):
    text = (root / "docs" / "embedding.md").read_text()
    lines = re.search(r"^```text\n(.*?)^```", text, re.M | re.S)[1].splitlines()
    documented = [line for line in lines if "(" in line]
    found = []
    for line in documented:
        name = line.partition("(")[0]
        owner, _, method = name.partition(".")
        called = getattr(getattr(runtime, owner), method) if method else getattr(runtime, owner)
        parameters = [
            one.replace(annotation=inspect.Parameter.empty)
            for one in inspect.signature(called).parameters.values()
            if one.name not in ("self", "unknown")
        ]
        found.append(f"{name}{inspect.Signature(parameters)}")
    assert documented == found
