"""Modules that a program imports in a fresh process."""

import subprocess
import sys

HEAVY = (
    *("torch", "torchvision", "albumentations", "onnx", "onnxruntime", "matplotlib", "tensorboard"),
    *("numpy", "cv2", "PIL", "rich", "filelock", "platformdirs", "safetensors"),
)
"""Packages that take long to import, or that an extra brings."""


def imported(program, names=HEAVY):
    """Those of the names that are imported once the program has run."""
    code = f"{program}\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr.split()


def imported_for_help(module):
    """Return the modules in `HEAVY` that `python -m MODULE --help` imports."""
    return imported(f"from {module} import main\nmain(['--help'], standalone_mode=False)")
