"""`--help` of the modules that people run needs neither PyTorch nor any other package of an extra."""

import subprocess
import sys

import pytest
from imported import imported_for_help


@pytest.mark.parametrize("module", ["benchmarks.training", "benchmarks.precision"])
def test_help_imports_no_heavy_package(module):
    assert imported_for_help(module) == []


@pytest.mark.parametrize(
    ("module", "arguments"), [("benchmarks.training", ["data"]), ("benchmarks.precision", ["model.pth", "data"])]
)
def test_without_the_extra_one_line_names_it(module, arguments):
    program = (
        "import runpy, sys\n"
        "sys.modules['torch'] = None\n"
        f"sys.argv = ['{module}', *{arguments}]\n"
        f"runpy.run_module('{module}', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: torch is not installed; install unet-deploy with its extra [export]\n"
