"""The wheel: it holds the four packages and nothing else, and its commands work where only its dependencies are."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime", "unet_core", "export", "benchmarks")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SAMPLES = ROOT / "tests" / "data" / "v0.1"
NEEDED_SETUPTOOLS = 77
PAGE_SUFFIXES = {".css", ".html", ".js"}
LEFT_OUT = (".*", "demo", "runs", "build", "dist", "docs", "*.egg-info", "__pycache__")
OFFLINE = os.environ | {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPATH": ""}


def run(*command, cwd):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=OFFLINE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def is_installed_here(requirement):
    """Return True if a requirement is one of the bare distribution's, on this system."""
    _, _, marker = requirement.partition(";")
    return "extra ==" not in marker and not ("Darwin" in marker and ("!=" in marker) == (sys.platform == "darwin"))


def with_dependencies(names):
    """Return the distributions of these names and all that they need, as far as they are installed here."""
    found, waiting = {}, list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        requirements = filter(is_installed_here, found[name].requires or ())
        waiting += [re.match(r"[\w.-]+", requirement)[0] for requirement in requirements]
    return list(found.values())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tree without the network."""
    try:
        found = version("setuptools")
    except PackageNotFoundError:
        found = "0"
    if int(found.partition(".")[0]) < NEEDED_SETUPTOOLS:
        pytest.skip(f"setuptools {found}: building without the network needs {NEEDED_SETUPTOOLS} or newer; make setup")
    work = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, work / "tree", ignore=shutil.ignore_patterns(*LEFT_OUT))
    build = ("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", work / "wheels")
    run(sys.executable, *build, cwd=work / "tree")
    (built,) = (work / "wheels").iterdir()
    return built


@pytest.fixture(scope="module")
def bare(wheel):
    """The folder of commands of an environment that has the wheel and its dependencies, and no extra."""
    folder = wheel.parents[1] / "bare"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, cwd=folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    needed = [re.match(r"[\w.-]+", requirement)[0] for requirement in PROJECT["dependencies"]]
    for package in with_dependencies(needed):
        for top in {file.parts[0] for file in package.files if file.parts[0] != ".."} - {"__pycache__"}:
            if not (site_packages / top).exists():
                (site_packages / top).symlink_to(package.locate_file(top))
    return folder / "bin"


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    pages = {
        str(path.relative_to(ROOT)) for path in (ROOT / "runtime" / "page").iterdir() if path.suffix in PAGE_SUFFIXES
    }
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    metadata = f"unet_deploy-{PROJECT['version']}.dist-info"
    assert {name for name in names if not name.startswith(metadata)} == modules | pages | {
        f"{one}/py.typed" for one in PACKAGES
    }
    assert {f"{metadata}/METADATA", f"{metadata}/entry_points.txt", f"{metadata}/licenses/LICENSE"} <= names
    assert wheel.name == f"unet_deploy-{PROJECT['version']}-py3-none-any.whl"


@pytest.mark.parametrize("command", ["unet-predict", "unet-doctor"])
def test_commands_tell_their_version(bare, tmp_path, command):
    assert run(bare / command, "--version", cwd=tmp_path) == f"{command} {PROJECT['version']}\n"


@pytest.mark.parametrize("command", sorted(PROJECT["scripts"]))
def test_commands_explain_themselves_without_any_extra(bare, tmp_path, command):
    assert run(bare / command, "--help", cwd=tmp_path).startswith(f"Usage: {command} ")


def test_the_runtime_predicts_where_pytorch_is_not_installed(bare, tmp_path):
    program = (
        "import sys, importlib.util, runtime\n"
        "assert runtime.__file__.startswith(sys.prefix), runtime.__file__\n"
        "assert importlib.util.find_spec('torch') is None and importlib.util.find_spec('onnx') is None\n"
        "print(runtime.predict(sys.argv[1], model=sys.argv[2], device='cpu').mask.shape)\n"
    )
    image = SAMPLES / "data" / "val_images" / "val7.png"
    assert run(bare / "python", "-c", program, image, SAMPLES / "models" / "fp32.onnx", cwd=tmp_path) == "(32, 48)\n"
