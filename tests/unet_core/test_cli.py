import subprocess
import sys

import pytest

HEAVY = (
    *("torch", "torchvision", "albumentations", "onnx", "onnxruntime"),
    *("cv2", "PIL", "matplotlib", "rich", "filelock"),
)

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
        ("unet_core.cli", "train", ["data"], "train"),
        ("unet_core.cli", "evaluate", ["model.pth", "data"], "train"),
        ("export.cli", "main", ["model.pth"], "export"),
    ],
)
def test_a_missing_extra_is_one_line(module, function, arguments, extra):
    done = run(module, function, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f" is not installed; install unet-deploy with its extra [{extra}]\n")
    assert done.stderr.count("\n") == 1


def test_export_explains_itself_without_pytorch():
    done = run("export.cli", "main", "--help")
    assert done.returncode == 0
    assert "Write CHECKPOINT" in done.stdout


@pytest.mark.parametrize(("function", "words"), [("train", "Train a U-Net on DATA"), ("evaluate", "Measure MODEL")])
def test_both_commands_are_the_modules_own(function, words):
    code = f"import sys; sys.argv = ['unet', '--help']; from unet_core.cli import {function} as main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert words in done.stdout


def test_the_help_of_training_imports_nothing_heavy():
    code = (
        "import sys; from unet_core.train import main; main(['--help'], standalone_mode=False); "
        f"sys.exit(str([name for name in {HEAVY} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("[]\n", 1)
    assert "--batch-size" in done.stdout
