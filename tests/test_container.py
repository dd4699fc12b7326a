"""The images: their RUN lines in a bare environment, without the network, and commands where nothing can be written.

No container engine takes part. The wheels are those of the packages that are installed here, and `make setup` gets
ONNX Runtime for CPUs. The image for GPUs gets little but the names of its packages.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from dockerfile import build, context_files, is_sent, read_dockerfile
from wheels import applying, empty_wheel, needed_by, repack

from runtime.model_file.reader import read_model

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests" / "data" / "v0.1" / "models" / "fp32.onnx"
IMAGES = ROOT / "tests" / "data" / "v0.1" / "data" / "val_images"
FOR_CPUS = Path(sys.prefix) / "wheels"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NVIDIA = "onnxruntime-gpu[cuda,cudnn]"
UNUSED = ("*/tests/*", "*/include/*", "*.pyi")
"""Files that take pip long and that nothing here loads."""

RUN_FOR_GPUS = {"click", "packaging", "setuptools"}
"""Packages of which the image for GPUs gets more than the names: what `unet-predict --version` needs."""

WITHOUT_RIGHTS = () if os.geteuid() else ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
"""Words before a command that take root's rights from it, so that it writes only where the permissions allow it."""


def lines_of(path):
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def licence_of(metadata):
    """Return a distribution's licence by its name in SPDX's list; older metadata have names of their own."""
    told = metadata["License-Expression"] or metadata["License"]
    return {"MIT License": "MIT", "3-Clause BSD License": "BSD-3-Clause", "Apache 2.0": "Apache-2.0"}.get(told, told)


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Environment variables for each image: pip finds its packages alone, and `python` is a bare environment."""
    (for_cpus,) = FOR_CPUS.glob("onnxruntime-*.whl") if FOR_CPUS.is_dir() else (None,)
    if for_cpus is None:
        pytest.skip(f"{FOR_CPUS} has no ONNX Runtime for CPUs; make setup gets it")
    base = tmp_path_factory.mktemp("base")
    for target in ("cpu", "cuda"):
        (base / target).mkdir()
    shutil.copy(for_cpus, base / "cpu")
    for name, found in needed_by(["setuptools", NVIDIA, *lines_of(ROOT / "requirements-cpu.txt")]).items():
        if found is None and name.startswith("nvidia-"):
            empty_wheel(name, "10.0", base / "cuda")  # nvidia-curand, which PyTorch does without
        elif found is not None:
            repack(found, base / "cuda", UNUSED if name in RUN_FOR_GPUS else ("*",))
            if not name.startswith(("nvidia-", "onnxruntime-")):
                repack(found, base / "cpu", UNUSED)
    venv.create(base / "python", symlinks=True)
    (site_packages,) = (base / "python").glob("lib/python*/site-packages")
    for top in {file.parts[0] for file in distribution("pip").files} - {".."}:
        (site_packages / top).symlink_to(distribution("pip").locate_file(top))
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "VIRTUAL_ENV"))}
    common = own | {
        "PATH": f"{base / 'python' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_COMPILE": "1",  # bytecode would take longer than all else
        "PIP_NO_INDEX": "1",
    }
    return {target: common | {"PIP_FIND_LINKS": str(base / target)} for target in ("cpu", "cuda")}


class Image:
    """An image's folder /opt/unet, and running its commands where neither it nor a home folder can be written."""

    def __init__(self, target, folder, offline):
        self.environment = build(ROOT, target, folder, offline)
        self.folder = folder / "opt" / "unet"
        for path in [folder, *folder.rglob("*")]:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        self.bytecode = folder.with_name(f"{folder.name}-bytecode")  # which is compiled once, and not part of the image
        self.bytecode.mkdir()

    def start(self, *command):
        """Start a command of the image that cannot write to its home folder, and has no temporary folder of its own."""
        nowhere = str(self.folder / "nowhere")
        there = {"HOME": nowhere, "TMPDIR": nowhere, "PYTHONPYCACHEPREFIX": str(self.bytecode)}
        return subprocess.Popen(
            [*WITHOUT_RIGHTS, self.folder / "bin" / command[0], *map(str, command[1:])],
            cwd="/",
            env=self.environment | there,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command):
        """Run a command of the image to its end."""
        with self.start(*command) as process:
            told = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, *told)

    def packages(self):
        """Return {name: version} of what pip installed."""
        found = self.folder.glob("lib/python*/site-packages/*.dist-info")
        return {name.lower().replace("_", "-"): version for name, version in (one.stem.split("-") for one in found)}


@pytest.fixture(scope="module")
def cpu(tmp_path_factory, offline):
    return Image("cpu", tmp_path_factory.mktemp("cpu"), offline["cpu"])


@pytest.fixture(scope="module")
def cuda(tmp_path_factory, offline):
    return Image("cuda", tmp_path_factory.mktemp("cuda"), offline["cuda"])


def test_requirements_for_cpus_are_those_of_the_project_with_another_onnxruntime():
    wanted = applying(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["serve"])
    lines = {f"{one.name}{one.specifier}".replace("onnxruntime-gpu", "onnxruntime") for one in wanted}
    assert set(lines_of(ROOT / "requirements-cpu.txt")) == lines


def test_the_image_for_cpus_holds_what_is_needed_and_nothing_of_gpus(cpu):
    """All of it at the versions of constraints.txt."""
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines_of(ROOT / "constraints.txt"))
    needed = set(needed_by([*lines_of(ROOT / "requirements-cpu.txt"), "onnxruntime-gpu"])) - {"onnxruntime-gpu"}
    assert cpu.packages() == {name: pinned[name] for name in needed} | {"unet-deploy": PROJECT["version"]}


def test_the_image_for_gpus_holds_the_libraries_of_cuda(cuda):
    packages = cuda.packages()
    assert "onnxruntime" not in packages
    assert {"onnxruntime-gpu", "nvidia-cuda-runtime", "nvidia-cublas", "nvidia-curand", "nvidia-cudnn-cu13"} <= {
        *packages
    }
    told = cuda.run("unet-predict", "--version")
    assert (told.returncode, told.stdout) == (0, f"unet-predict {PROJECT['version']}\n"), told.stderr


def test_nothing_can_be_written_beside_the_temporary_folder(cpu, tmp_path):
    """The tests below would say nothing if it could."""
    for folder, refused in ((cpu.folder, True), (cpu.folder / "lib", True), (tmp_path, False)):
        done = cpu.run("python", "-c", f"open({str(folder / 'file')!r}, 'w')")
        assert ("PermissionError" in done.stderr) == refused, done.stderr


def test_the_doctor_is_content_without_a_gpu_package(cpu):
    done = cpu.run("unet-doctor", MODEL, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], done.stderr) == (0, True, "")
    assert [problem for problem in found["problems"] if problem["severity"] == "error"] == []
    packages = found["installed"]["packages"]
    assert packages["onnxruntime"] == found["installed"]["onnxruntime"]
    assert "onnxruntime-gpu" not in packages
    assert found["devices"]["cpu"] is None
    assert "is built without CUDAExecutionProvider" in found["devices"]["cuda"]
    one = found["model"]["devices"]["cpu"]
    assert one["golden_error"] <= one["tolerance"]


@pytest.fixture
def service(cpu, tmp_path):
    """The image's service as the image starts it, but for the model and its name, address and port.

    Yields the process, its port, and the image's check of its health, which was tried before the service was there.
    """
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = str(one.getsockname()[1])
    shutil.copy(MODEL, tmp_path / "model.onnx")
    stage = read_dockerfile(ROOT / "Dockerfile")["service"]
    changed = {"/models/model.onnx": f"car={tmp_path / 'model.onnx'}", "0.0.0.0": "127.0.0.1", "8000": port}
    command = [changed.get(word, word) for word in json.loads(stage.all_of("CMD")[0])]
    check = [
        word.replace(":8000", f":{port}") for word in json.loads(stage.all_of("HEALTHCHECK")[0].partition("CMD ")[2])
    ]
    assert cpu.run(*check).returncode == 1
    process = cpu.start(*command)
    try:
        yield process, port, check
    finally:
        process.kill()
        process.communicate()


def test_the_service_tells_its_health_answers_and_stops(cpu, service, tmp_path):
    """It answers the page's requests for Triton, too, whose repository has the golden sample as the page says."""
    process, port, check = service
    while cpu.run(*check).returncode != 0:
        assert process.poll() is None, process.communicate()
    image = next(IMAGES.iterdir()).read_bytes()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/predict", image) as answer:
        assert answer.read(8) == b"\x89PNG\r\n\x1a\n"
    (tmp_path / "models" / "car" / "warmup").mkdir(parents=True)
    (tmp_path / "models" / "car" / "warmup" / "image").write_bytes(read_model(MODEL)[1].image.tobytes())
    page = (ROOT / "docs" / "container.md").read_text().replace("localhost:8000", f"127.0.0.1:{port}")
    shell = re.search(r"```sh\n(header=.+?)```", page, re.S)[1]
    python = re.search(r"```python\n(.+?)```", page, re.S)[1]
    subprocess.run(["sh", "-ec", shell], cwd=tmp_path, check=True)
    assert (tmp_path / "answer.bin").read_bytes().count(b'"probability"') == 1
    told = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert told.stdout == "(1, 1, 56, 88)\n"
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=60)
    assert process.returncode == 0, told


def test_the_image_for_cpus_is_built_by_default():
    assert list(read_dockerfile(ROOT / "Dockerfile"))[-1] == "cpu"


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_images_run_as_a_user_without_rights(target):
    stages = read_dockerfile(ROOT / "Dockerfile")
    base = stages[stages[target].base]
    assert base.all_of("USER") == ["10001:10001"]
    assert {word for word, _ in stages[target].instructions} <= {"ENV", "COPY"}  # all else is the base's


def test_a_build_is_sent_the_packages_and_what_they_are_installed_with():
    tops = {path.parts[0] for path in context_files(ROOT)}
    files = {"LICENSE", "README.md", "constraints.txt", "pyproject.toml", "requirements-cpu.txt"}
    assert tops == files | {"benchmarks", "export", "runtime", "unet_core"}
    assert not [path for path in context_files(ROOT) if path.suffix == ".pyc"]


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("runtime/card.py", True),
        ("runtime/images/png.py", True),
        ("runtime/__pycache__/card.cpython-311.pyc", False),
        ("runs/car/model.pth", False),
        (".env", False),
        (".git/config", False),
    ],
)
def test_what_a_build_is_sent(path, sent):
    assert is_sent(Path(path), lines_of(ROOT / ".dockerignore")) == sent


def test_no_file_names_a_registry():
    """Names of images have none, so the reader's engine decides; whoever uses Triton says where it comes from."""
    stages, services = read_dockerfile(ROOT / "Dockerfile"), yaml.safe_load((ROOT / "compose.yaml").read_text())
    bases = [stage.base for stage in stages.values() if stage.base not in stages]
    assert set(bases) == {"python:${PYTHON}-slim"}
    triton = "${TRITON_IMAGE:-triton-image-is-not-set}"
    assert {one["image"] for one in services["services"].values()} == {"unet-deploy", "unet-deploy:cuda", triton}
    page = (ROOT / "docs" / "container.md").read_text()
    assert '"$TRITON_IMAGE" tritonserver' in page
    assert "export TRITON_IMAGE=" in page


def test_services_are_locked_up():
    """Each of compose.yaml: nothing to write but /tmp, no rights, reached from this machine alone."""
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert set(services) == {"unet", "unet-cuda", "triton", "triton-cuda"}
    for name, service in services.items():
        assert (service["read_only"], service["tmpfs"], service["cap_drop"]) == (True, ["/tmp"], ["ALL"]), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert all(volume.endswith(":/models:ro") for volume in service["volumes"]), name
        assert ("deploy" in service) == ("cuda" in name), name
        assert "build" not in service or service["build"]["target"] == {"unet": "cpu", "unet-cuda": "cuda"}[name]
        assert ("build" in service) == ("user" not in service), name  # the Dockerfile names one


def test_only_the_service_for_cpus_starts_by_default():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert [name for name, service in services.items() if "profiles" not in service] == ["unet"]


def test_the_page_tells_the_licence_of_every_package():
    page = (ROOT / "docs" / "container.md").read_text()
    rows = re.findall(r"^\| (\S.*?) \| (.+) \|$", page.partition("## Licences")[2], re.M)[1:]
    told = {name: licence for licence, names in rows for name in names.split(", ")}
    found = needed_by([NVIDIA, *lines_of(ROOT / "requirements-cpu.txt")])
    assert set(told) == set(found)
    assert {name: licence_of(one.metadata) for name, one in found.items() if one is not None} == {
        name: licence for name, licence in told.items() if found[name] is not None
    }


def test_the_page_installs_without_a_gpu_as_the_image_does():
    """pip's commands are the Dockerfile's, but for the folder that they install to."""
    page = (ROOT / "docs" / "container.md").read_text()
    block = re.search(r"```sh\n((?:pip install .*\n)+)```", page)[1]
    lines = read_dockerfile(ROOT / "Dockerfile")["cpu-packages"].all_of("RUN")
    commands = [line.replace("python -m pip --python /opt/unet", "pip") for line in lines]
    assert [sorted(line.split()) for line in block.splitlines()] == [sorted(line.split()) for line in commands]


def test_the_page_predicts_a_folder_where_only_the_output_can_be_written(cpu, tmp_path):
    """By the command that follows the image's name, where the mounted folder is elsewhere."""
    (tmp_path / "runs" / "car").mkdir(parents=True)
    shutil.copy(MODEL, tmp_path / "runs" / "car" / "model.onnx")
    shutil.copytree(IMAGES, tmp_path / "images")
    page = re.sub(r"\\\n\s*", "", (ROOT / "docs" / "container.md").read_text())
    (command,) = re.findall(r"^docker run .* unet-deploy (unet-predict .*)$", page, re.M)
    done = cpu.run(*command.replace("/data/", f"{tmp_path}/").split())
    assert done.returncode == 0, done.stderr
    masks = {path.name for path in (tmp_path / "masks").iterdir()}
    assert masks == {f"{path.stem}.png" for path in IMAGES.iterdir()}
