"""The rules of docs/design.md that a machine can check: who imports whom, public import paths, names, docstrings."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["runtime", "unet_core", "export", "benchmarks"]
"""From the ground up: a package imports those before it, never those after it."""

RUNTIME_LIBRARIES = {"numpy", "onnxruntime", "PIL", "cv2", "simplejpeg", "click", "blake3", "zlib_ng"}
SERVER_LIBRARIES = {"fastapi", "starlette", "uvicorn", "prometheus_client"}
"""Libraries that the room `runtime.serve` may import as well; its commands say which extra brings them."""

PUBLIC_MODULES = {
    "runtime": ["card", "distributed", "errors", "image", "options", "predictor", "result", "rle"],
    "unet_core": ["checkpoint", "datasets", "evaluate", "model", "train", "turntable"],
    "export": ["exporter", "graph", "proof", "samples", "triton", "verify"],
    "benchmarks": ["first_gpu_run", "networks", "precision", "results", "training"],
}
PUBLIC_NAMES = {
    "export": ["ExportReport", "export_onnx"],
    "export.triton": ["write_repository"],
    "runtime.card": ["ModelCard"],
    "runtime.image": ["fit", "load_image", "restore"],
    "runtime.options": ["ProviderOptions"],
    "runtime.predictor": ["Predictor", "predict"],
    "runtime.result": ["Segmentation"],
    "runtime.rle": ["coco_decode", "coco_encode", "decode", "encode"],
    "unet_core.checkpoint": ["load_checkpoint", "save_checkpoint"],
    "unet_core.model": ["Segmenter", "UNet"],
}
COMMANDS = [
    "unet_core.train",
    "unet_core.evaluate",
    "unet_core.turntable",
    "unet_core.data",
    "benchmarks.training",
    "benchmarks.precision",
    "benchmarks.networks",
    "benchmarks.cluster",
    "benchmarks.serving",
    "benchmarks.first_gpu_run",
]
CLASS_NAMES_USED_TWICE: dict[str, str] = {}
"""Class names with more than one definition, and why each is allowed."""

BAD_OPENINGS = {"What", "How", "Whether", "Of", "Where", "Likewise"}


@cache
def modules():
    """Every module of the four packages, by its dotted name: the syntax tree of its file."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(), str(path))
    return found


def nodes_that_run(tree):
    """Every node below this one, without the bodies of `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield other
                yield from nodes_that_run(other)
        else:
            yield node
            yield from nodes_that_run(node)


def imported_names(tree):
    """Yield the dotted name of everything that a module imports, inside functions too."""
    for node in nodes_that_run(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports():
    """The modules of the four packages that each module imports, by dotted name."""
    arrows = {}
    for module, tree in modules().items():
        arrows[module] = set()
        for name in imported_names(tree):
            target = name if name in modules() else name.rpartition(".")[0]
            if target in modules():
                arrows[module].add(target)
    return arrows


def room_of(module):
    """The room of a private module; a file directly in a package is a node of its own."""
    return ".".join(module.split(".")[:2])


def arrows_between_rooms():
    return {
        (room_of(module), room_of(target))
        for module, targets in imports().items()
        for target in targets
        if room_of(module) != room_of(target)
    }


def circle(arrows):
    """The first circle among (from, to) arrows, or None."""
    graph = {}
    for start, end in arrows:
        graph.setdefault(start, set()).add(end)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


@cache
def drawing(package):
    """The arrows drawn for a package in docs/design.md, and all (from, to) that chains of them connect."""
    section = (ROOT / "docs" / "design.md").read_text().partition(f"\n### {package}\n")[2].partition("\n### ")[0]
    block = re.search(r"^```imports\n(.*?)^```", section, re.M | re.S)[1]
    drawn = set()
    for line in block.splitlines():
        chain = [f"{package}.{name.strip()}" for name in re.split("-+>", line)]
        drawn |= set(pairwise(chain))
    connected = set(drawn)
    while more := {(a, d) for a, b in connected for c, d in drawn if b == c} - connected:
        connected |= more
    return drawn, connected


def test_the_walk_sees_imports_in_functions_but_not_those_for_types_alone():
    text = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    from c.d import e"
    assert set(imported_names(ast.parse(text))) == {"b", "c.d.e"}
    assert "runtime.errors" in imports()["runtime.predictor"] and len(modules()) > 100


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_those_below(package):
    above = set(PACKAGES[PACKAGES.index(package) + 1 :])
    for module, targets in imports().items():
        if module.partition(".")[0] == package:
            assert not above.intersection(target.partition(".")[0] for target in targets), module


def test_no_files_import_one_another_in_a_circle():
    assert circle({(module, target) for module, targets in imports().items() for target in targets}) is None


def test_no_rooms_import_one_another_in_a_circle():
    assert circle(arrows_between_rooms()) is None


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_one_another_as_drawn(package):
    drawn, connected = drawing(package)
    assert circle(drawn) is None
    rooms = {room_of(module) for module in modules() if module.startswith(f"{package}.")}
    assert {end for arrow in drawn for end in arrow} == rooms, "the drawing and the rooms differ"
    found = {arrow for arrow in arrows_between_rooms() if set(arrow) <= rooms}
    missing = sorted(f"{start} -> {end}" for start, end in found - connected)
    assert not missing, f"imports that docs/design.md does not draw: {', '.join(missing)}"


def test_runtime_uses_its_few_libraries_alone():
    allowed = RUNTIME_LIBRARIES | set(sys.stdlib_module_names) | {"runtime"}
    for module, tree in modules().items():
        if module.partition(".")[0] == "runtime":
            more = SERVER_LIBRARIES if room_of(module) == "runtime.serve" else set()
            assert {name.partition(".")[0] for name in imported_names(tree)} <= allowed | more, module


def test_a_room_says_in_one_sentence_what_it_hides():
    for package in PACKAGES:
        for folder in sorted(path for path in (ROOT / package).rglob("*") if path.is_dir() and list(path.glob("*.py"))):
            room = ".".join(folder.relative_to(ROOT).parts)
            assert room.count(".") == 1, f"{room}: a room in a room"
            assert room in modules(), f"{room}: has no __init__.py"
            tree = modules()[room]
            sentence = ast.get_docstring(tree) or ""
            assert len(tree.body) == 1, f"{room}: its __init__.py holds more than a docstring"
            assert re.fullmatch(r"\w(?:[^.\n]|\.(?=\S))*\.", sentence), f"{room}: not one sentence: {sentence}"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_import_paths_work(package):
    for name in PUBLIC_MODULES[package]:
        module = import_module(f"{package}.{name}")
        assert set(PUBLIC_NAMES.get(module.__name__, [])) <= set(dir(module)), module.__name__
    front = import_module(package)
    assert all(hasattr(front, name) for name in PUBLIC_NAMES.get(package, []))


def test_import_paths_in_the_documentation_work():
    found = set()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text()
        for module, names in re.findall(r"^\s*(?:>>> )?from (\S+) import (.+)$", text, re.M):
            if module.partition(".")[0] in PACKAGES:
                found.add(module)
                missing = [name for name in names.split(", ") if not hasattr(import_module(module), name)]
                assert not missing, f"{path.name}: from {module} import {', '.join(missing)}"
        started = {name for name in re.findall(r"python -m (\w+\.\w+)", text) if name.partition(".")[0] in PACKAGES}
        found |= started
        assert started <= set(COMMANDS), path.name
    assert {"runtime.result", "export.graph", *COMMANDS} <= found


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_can_be_started_with_python_m(command):
    assert find_spec(command) is not None
    file = Path(find_spec(command).origin)
    file = file.with_name("__main__.py") if file.name == "__init__.py" else file
    assert 'if __name__ == "__main__":' in file.read_text()


def test_docstrings_open_with_a_verb_or_a_noun():
    places = []
    for module, tree in modules().items():
        for node in ast.walk(tree):  # the docstring of a constant is a string that follows it
            match node:
                case ast.Expr(value=ast.Constant(value=str(text))) if re.match(r"\w*", text)[0] in BAD_OPENINGS:
                    places.append(f"{module}, line {node.lineno}: {text.partition(chr(10))[0]}")
    assert not places, "\n".join(places)


def test_a_class_name_means_one_thing():
    definitions = {}
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                definitions.setdefault(node.name.lstrip("_"), []).append(module)
    twice = {name: where for name, where in definitions.items() if len(where) > 1}
    assert {name: where for name, where in twice.items() if name not in CLASS_NAMES_USED_TWICE} == {}
    assert set(CLASS_NAMES_USED_TWICE) <= set(twice), "an exception that is no longer needed"


def test_four_packages_are_installed_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]
    assert {name.partition(".")[0] for name in packages} == set(PACKAGES)
    folders = {path.parent.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert sorted(packages) == sorted(".".join(folder.parts) for folder in folders)
    assert {
        "train",
        "data",
        "encoders",
        "export",
        "gpu",
        "tensorrt",
        "openvino",
        "ray",
        "serve",
        "bench",
        "docs",
        "dev",
        "all",
    } == set(project["project"]["optional-dependencies"])
    assert {
        "unet-train",
        "unet-data",
        "unet-evaluate",
        "unet-export",
        "unet-predict",
        "unet-doctor",
        "unet-serve",
        "unet-bench",
    } == set(project["project"]["scripts"])


def test_constraints_are_exact_versions_without_addresses():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)


def test_the_map_in_the_design_names_every_module():
    text = (ROOT / "docs" / "design.md").read_text()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert path.name in text, f"{path.relative_to(ROOT)} is missing in docs/design.md"


def test_the_settings_files_in_the_documentation_are_accepted(tmp_path):
    from unet_core.config import TrainConfig
    from unet_core.settings_file import read_settings

    blocks = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs" / "training.md").read_text(), re.M | re.S)
    assert blocks
    for text in blocks:
        (tmp_path / "settings.toml").write_text(text)
        settings = read_settings(tmp_path / "settings.toml")
        assert len(settings) > 5
        TrainConfig(**{"data": "d", "out": "o"} | settings)


def test_a_worker_runs_all_tests_of_a_file(request):
    """Versions of pytest and pytest-xdist that do not fit each other scatter the tests without a word."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("needs workers: make test")
    assert request.node.nodeid.endswith("@tests/test_structure.py")


@pytest.mark.slow
@pytest.mark.xdist_group("readme")
def test_the_readmes_commands_run_in_order(tmp_path):
    from runtime.predictor import Predictor

    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) >= 2
    scripts = Path(sys.executable).parent
    # Every part of the benchmarks is measured once. Nothing is compiled, which takes half a minute:
    # test_a_compiled_network_answers_for_its_shape_only_as_one_graph does it.
    trial = os.environ | {"UNET_BENCH_TRIAL": "1", "TORCHDYNAMO_DISABLE": "1"}
    for kind, text in blocks:
        for line in [f"python -c {shlex.quote(text)}"] if kind == "python" else text.splitlines():
            program, *arguments = shlex.split(line, comments=kind == "sh")
            command = [sys.executable if program == "python" else str(scripts / program), *arguments]
            done = subprocess.run(command, cwd=tmp_path, env=trial, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert len(list((tmp_path / "masks").glob("*.png"))) == len(list((tmp_path / "Data" / "val_images").iterdir()))
    assert (tmp_path / "mask.png").exists()
    card = Predictor(tmp_path / "runs" / "car" / "model.onnx", "cpu").card
    assert card.training.metrics["pixel_dice"] > 0.5  # the walk ends with a model that finds cars
