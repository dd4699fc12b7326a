import subprocess
import sys

import pytest
from imported import imported, imported_for_help

WITHOUT = """
import sys
for name in ("torch", "torchvision", "onnx", "albumentations", "filelock", "rich"):
    sys.modules[name] = None
from {module} import {function} as main
sys.argv = ["command", *{arguments}]
main()
"""


def run(module, function, *arguments):
    code = WITHOUT.format(module=module, function=function, arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("module", "function", "arguments", "extra"),
    [
        ("unet_core.train", "main", ["data"], "train"),
        ("unet_core.evaluate", "main", ["model.pth", "data"], "train"),
        ("export.cli", "main", ["model.pth"], "export"),
    ],
)
def test_a_missing_extra_is_one_line(module, function, arguments, extra, tmp_path):
    (tmp_path / "model.pth").touch()
    (tmp_path / "data").mkdir()
    done = run(module, function, *(str(tmp_path / name) for name in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f" is not installed; install unet-deploy with its extra [{extra}]\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("package", ["rich", "filelock", "platformdirs"])
def test_every_package_of_the_extra_is_missed_at_the_start(package):
    code = f"import sys; sys.modules[{package!r}] = None; sys.argv = ['unet-train', 'data']; "
    code += "from unet_core.train import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {package} is not installed; install unet-deploy with its extra [train]\n",
    )


def test_export_explains_itself_without_pytorch():
    done = run("export.cli", "main", "--help")
    assert done.returncode == 0
    assert "Write CHECKPOINT" in done.stdout


def test_the_help_of_training_imports_neither_pytorch_nor_what_an_extra_brings():
    assert imported_for_help("unet_core.train") == ["numpy"]


def test_the_trainer_imports_neither_torchvision_nor_albumentations():
    """Importing them takes seconds, and many runs never use them."""
    assert imported("import unet_core.training.run", ("torchvision", "albumentations", "onnx")) == []
