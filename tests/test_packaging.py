"""Wheel and source distribution: what they hold, and that commands work where only their dependencies are."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from wheels import needed_by

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime", "unet_core", "export", "benchmarks")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
SAMPLES = ROOT / "tests" / "data" / "v0.1"
NEEDED_SETUPTOOLS = 77
LEFT_OUT = (".*", "demo", "runs", "build", "dist", "docs", "*.egg-info", "__pycache__")
OFFLINE = os.environ | {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPATH": ""}


def run(*command, cwd):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=OFFLINE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution, and the wheel built from it, made from a copy of the tree without the network."""
    try:
        found = version("setuptools")
    except PackageNotFoundError:
        found = "0"
    if int(found.partition(".")[0]) < NEEDED_SETUPTOOLS:
        pytest.skip(f"setuptools {found}: building without the network needs {NEEDED_SETUPTOOLS} or newer; make setup")
    work = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, work / "tree", ignore=shutil.ignore_patterns(*LEFT_OUT))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", work / "dist", cwd=work / "tree")
    return work / "dist"


@pytest.fixture(scope="module")
def wheel(distributions):
    (built,) = distributions.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel):
    """The folder of commands of an environment that has the wheel and its dependencies, and no extra."""
    folder = wheel.parents[1] / "bare"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, cwd=folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for package in filter(None, needed_by(PROJECT["dependencies"]).values()):
        for top in {file.parts[0] for file in package.files if file.parts[0] != ".."} - {"__pycache__"}:
            if not (site_packages / top).exists():
                (site_packages / top).symlink_to(package.locate_file(top))
    return folder / "bin"


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    metadata = f"unet_deploy-{PROJECT['version']}.dist-info"
    assert {name for name in names if not name.startswith(metadata)} == {
        path.relative_to(ROOT).as_posix() for path in files if path.parent.name != "__pycache__"
    }
    assert {f"{metadata}/METADATA", f"{metadata}/entry_points.txt", f"{metadata}/licenses/LICENSE"} <= names
    assert wheel.name == f"unet_deploy-{PROJECT['version']}-py3-none-any.whl"


def test_the_source_distribution_holds_the_packages_and_what_is_to_be_known_of_them(distributions):
    """The wheel above is built from it, so no module is missing."""
    name = f"unet_deploy-{PROJECT['version']}"
    with tarfile.open(distributions / f"{name}.tar.gz") as archive:
        tops = {Path(one).relative_to(name).parts[0] for one in archive.getnames() if one != name}
    written = {"PKG-INFO", "setup.cfg", "unet_deploy.egg-info"}
    texts = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md"}
    assert tops == {
        *PACKAGES,
        *written,
        *texts,
        "MANIFEST.in",
        "constraints.txt",
        "pyproject.toml",
        "requirements-cpu.txt",
    }


def test_pypi_would_take_both(distributions):
    told = run(sys.executable, "-m", "twine", "check", "--strict", *sorted(distributions.iterdir()), cwd=distributions)
    assert told.count("PASSED") == 2, told


def test_the_citation_is_of_this_version():
    """In the form of the Citation File Format 1.2.0, which asks for the first four."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert (cited["cff-version"], cited["title"], cited["version"]) == ("1.2.0", PROJECT["name"], PROJECT["version"])
    assert (cited["license"], cited["keywords"]) == (PROJECT["license"], PROJECT["keywords"])
    assert "date-released" not in cited or f"## [{cited['version']}] - {cited['date-released']}" in CHANGELOG


def test_a_release_is_in_the_changelog():
    """The newest section is that of this version, or of what comes after it."""
    newest = re.findall(r"^## \[(.+?)\]", CHANGELOG, re.M)[0]
    assert newest in ("Unreleased", PROJECT["version"])


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
