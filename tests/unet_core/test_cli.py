import subprocess
import sys

import pytest

WITHOUT = """
import sys
for name in ("torch", "torchvision", "onnx", "albumentations"):
    sys.modules[name] = None
from {module} import {function} as main
sys.argv = ["command", "--help"] if {help} else ["command", "model.pth"]
main()
"""


def run(module, function, wants_help=False):
    code = WITHOUT.format(module=module, function=function, help=wants_help)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("module", "function", "extra"),
    [
        ("unet_core.cli", "train", "train"),
        ("unet_core.cli", "evaluate", "train"),
        ("export.cli", "main", "export"),
    ],
)
def test_a_missing_extra_is_one_line(module, function, extra, tmp_path):
    done = run(module, function)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f" is not installed; install unet-deploy with its extra [{extra}]\n")
    assert done.stderr.count("\n") == 1


def test_export_explains_itself_without_pytorch():
    done = run("export.cli", "main", wants_help=True)
    assert done.returncode == 0
    assert "Write CHECKPOINT" in done.stdout


@pytest.mark.parametrize(("function", "words"), [("train", "Train a U-Net on DATA"), ("evaluate", "Measure MODEL")])
def test_both_commands_are_the_modules_own(function, words):
    code = f"import sys; sys.argv = ['unet', '--help']; from unet_core.cli import {function} as main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert words in done.stdout
