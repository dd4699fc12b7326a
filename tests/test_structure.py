"""The house's rules that a machine can check: arrows of import point down, and the README's commands work."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from runtime.predictor import Predictor
from unet_core.config import TrainConfig, read_settings

ROOT = Path(__file__).parents[1]
FLOORS = ["runtime", "unet_core", "export", "benchmarks"]
GROUND_FLOOR_LIBRARIES = {"numpy", "onnxruntime", "PIL", "cv2", "click", "tensorrt_libs"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_point_down_only(floor):
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    for path in files:
        assert not above.intersection(imports(path)), path


def test_the_ground_floor_needs_little():
    allowed = GROUND_FLOOR_LIBRARIES | set(sys.stdlib_module_names) | {"runtime"}
    for path in sorted((ROOT / "runtime").rglob("*.py")):
        assert set(imports(path)) <= allowed, path


def test_four_packages_are_installed_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]
    assert {name.partition(".")[0] for name in packages} == set(FLOORS)
    folders = {path.parent.relative_to(ROOT) for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}
    assert sorted(packages) == sorted(".".join(folder.parts) for folder in folders)
    assert {"train", "export", "gpu", "tensorrt", "bench", "dev", "all"} == set(
        project["project"]["optional-dependencies"]
    )
    assert {"unet-train", "unet-evaluate", "unet-export", "unet-predict", "unet-doctor", "unet-bench"} == set(
        project["project"]["scripts"]
    )


def test_constraints_are_exact_versions_without_addresses():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)


def test_the_map_in_the_design_names_every_module():
    text = (ROOT / "docs" / "design.md").read_text()
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            assert path.name in text, f"{path.relative_to(ROOT)} is missing in docs/design.md"


def test_the_recipes_in_the_documentation_are_settings(tmp_path):
    blocks = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs" / "training.md").read_text(), re.M | re.S)
    assert blocks
    for text in blocks:
        (tmp_path / "recipe.toml").write_text(text)
        settings = read_settings(tmp_path / "recipe.toml")
        assert len(settings) > 5
        TrainConfig(**{"data": "d", "out": "o"} | settings)


@pytest.mark.slow
@pytest.mark.xdist_group("readme")
def test_the_readmes_commands_run_in_order(tmp_path):
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) >= 5
    scripts = Path(sys.executable).parent
    trial = os.environ | {"UNET_BENCH_TRIAL": "1"}  # every part is measured, and nothing waits for a quiet machine
    for kind, text in blocks:
        for line in [f"python -c {shlex.quote(text)}"] if kind == "python" else text.splitlines():
            program, *arguments = shlex.split(line)
            command = [sys.executable if program == "python" else str(scripts / program), *arguments]
            done = subprocess.run(command, cwd=tmp_path, env=trial, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert len(list((tmp_path / "masks").glob("*.png"))) == len(list((tmp_path / "Data" / "val_images").iterdir()))
    assert (tmp_path / "mask.png").exists()
    card = Predictor(tmp_path / "runs" / "car" / "model.onnx", "cpu").card
    assert card.training.metrics["pixel_dice"] > 0.5  # the walk ends with a model that finds cars
