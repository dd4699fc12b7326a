"""The modules that importing loads, and their cost, in fresh processes."""

import ast
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image

import runtime

HEAVY = ["numpy", "onnxruntime", "cv2", "PIL", "click", "torch"]
NEVER = [
    "torch",
    "torchvision",
    "onnx",
    "albumentations",
    "matplotlib",
    "unet_core",
    "export",
    "benchmarks",
    "click.testing",
    "ray",
    "fsspec",
    "pyarrow",
]


def fresh(program, root, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)], cwd=root, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.strip()


def loaded(names):
    return f"import sys; print([name for name in {names!r} if name in sys.modules])"


def test_import_loads_nothing_heavy(root):
    assert fresh(f"import runtime; {loaded(HEAVY)}", root) == "[]"


@pytest.mark.parametrize("name", ["ModelCard", "ImageError", "DeviceWarning"])
def test_card_and_errors_need_the_standard_library_only(root, name):
    assert fresh(f"from runtime import {name}; {loaded(HEAVY)}", root) == "[]"


def test_prediction_from_file_to_file_loads_neither_torch_nor_the_rest_of_the_house(root, tmp_path, models):
    Image.fromarray(np.full((4, 5, 3), 200, np.uint8)).save(tmp_path / "a.png")
    program = "import runtime, sys; runtime.predict(sys.argv[1], model=sys.argv[2], device='cpu').save(sys.argv[3]); "
    out = tmp_path / "mask.png"
    assert fresh(program + loaded(NEVER), root, tmp_path / "a.png", models["brightness"], out) == "[]"
    with Image.open(out) as picture:
        assert (np.asarray(picture) == np.full((4, 5), 255)).all()


def test_prediction_of_a_jpeg_loads_no_pillow(root, tmp_path, models):
    """Nor what only engines, tables and other formats need: a start costs little more than ONNX Runtime's."""
    Image.fromarray(np.full((4, 5, 3), 200, np.uint8)).save(tmp_path / "a.jpg", quality=100)
    program = "import runtime, sys; runtime.predict(sys.argv[1], model=sys.argv[2], device='cpu').save(sys.argv[3]); "
    names = ["PIL", "hashlib", "shutil", "csv", "runtime.image_files.tiff", "runtime.engine_store"]
    out = tmp_path / "mask.png"
    assert fresh(program + loaded(names), root, tmp_path / "a.jpg", models["brightness"], out) == "[]"
    assert (np.asarray(Image.open(out)) == np.full((4, 5), 255)).all()


def test_command_line_loads_neither_torch_nor_the_rest_of_the_house(root):
    assert fresh("import runtime.commands.predict_files; " + loaded(NEVER), root) == "[]"


@pytest.mark.parametrize(("module", "name"), [("predict", "predict"), ("doctor", "main")])
def test_help_loads_nothing_heavy(root, module, name):
    heavy = [*HEAVY, "runtime.predictor", "runtime.image"]
    heavy.remove("click")
    program = (
        f"import runtime.commands.{module} as module\n"
        "try: module.{name}(['--help'], prog_name='p')\n"
        "except SystemExit as end: print(end.code)\n".replace("{name}", name)
    )
    shown = fresh(program + loaded(heavy), root)
    assert shown.startswith("Usage: p [OPTIONS]")
    assert "WXH" not in shown
    assert shown.splitlines()[-2:] == ["0", "[]"]


@pytest.mark.parametrize(
    "module", ["runtime.predictor", "export.proof", "benchmarks.cases.latency", "unet_core.evaluate"]
)
def test_onnx_runtime_keeps_no_telemetry(root, tmp_path, monkeypatch, module):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path.parent))
    fresh(f"import {module}", root)
    assert not list(tmp_path.iterdir())


def test_telemetry_is_left_to_those_who_decide_on_it(root, monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert fresh("import runtime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])", root) == "0"


def test_distributed_is_there_without_an_import_of_its_own_and_loads_no_ray(root):
    program = "import runtime; print(runtime.distributed.segment.__name__); " + loaded(["ray", "fsspec", "pyarrow"])
    assert fresh(program, root).splitlines() == ["segment", "[]"]


@pytest.mark.parametrize("name", runtime.__all__)
def test_public_name_resolves_to_its_home(name):
    assert getattr(runtime, name).__name__ == name
    assert getattr(runtime, name).__module__.startswith("runtime.")


def test_public_names_are_these():
    assert runtime.__all__ == dir(runtime)
    assert runtime.__version__ == version("unet-deploy")
    assert {"predict", "Predictor", "Segmentation", "ModelCard", "UnetError", "DeviceWarning"} <= set(runtime.__all__)
    assert {kind.__name__ for kind in runtime.UnetError.__subclasses__()} <= set(runtime.__all__)


def test_star_import_gives_every_public_name(root):
    program = "from runtime import *; import runtime; print(set(runtime.__all__) <= set(globals()))"
    assert fresh(program, root) == "True"


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'runtime' has no attribute 'pedict'$"):
        _ = runtime.pedict
    with pytest.raises(ImportError, match="cannot import name 'pedict'"):
        exec("from runtime import pedict")


def test_what_is_imported_before_ctrl_c_is_guarded_against_is_next_to_nothing(root):
    assert fresh("import runtime.commands.entry; " + loaded(["click", "numpy", "email", "dataclasses"]), root) == "[]"


def test_no_test_of_the_runtime_needs_more_than_the_runtime(request, root):
    """Neither a file nor what it imports from beside it takes PyTorch or another package, and no fixture does."""
    folder, beside = root / "tests" / "runtime", root / "tests" / "support"
    waiting = [*folder.rglob("*.py")]
    assert len(waiting) > 50
    seen = set(waiting)
    for path in waiting:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in {module.partition(".")[0] for module in modules}:
                assert name not in ("torch", "torchvision", "unet_core", "export", "benchmarks"), path
                file = beside / f"{name}.py"
                if file.exists() and file not in seen:
                    seen.add(file)
                    waiting.append(file)
    asked = {name for item in request.session.items if folder in item.path.parents for name in item.fixturenames}
    assert not asked.intersection({"network", "trained", "shared_exports", "plain_curves"})
