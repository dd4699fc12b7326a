"""The first step: the driver and its GPU, versions, the libraries that are loaded, the devices that work here."""

import ctypes
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_run.findings import Finding, Scalar
from benchmarks.gpu_run.processes import STAND_IN, StepContext, variables
from benchmarks.gpu_run.steps import CUDA, GPU, PYTORCH, TENSORRT
from benchmarks.measuring.environment import machine
from benchmarks.measuring.subprocesses import exit_reason
from runtime.errors import one_line

SMI_FIELDS = ("name", "driver_version", "compute_cap", "memory.total", "memory.used", "clocks.max.sm", "power.limit")
"""Fields of nvidia-smi --query-gpu."""

SMI_SECONDS, DOCTOR_SECONDS, PYTORCH_SECONDS = 15, 60, 60

COMPUTE_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of CUDA's driver API."""

LIBRARIES = ("libcuda", "libcudart", "libcublas", "libcublasLt", "libcudnn", "libcurand", "libcufft", "libnvinfer")
"""Names of the libraries whose files are recorded once the providers are loaded."""

PYTORCH_SCRIPT = """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "sees_gpu": torch.cuda.is_available()}
if found["sees_gpu"]:
    found["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
    found["cudnn"] = torch.backends.cudnn.version()
    found["bf16"] = torch.cuda.is_bf16_supported()
    found["product"] = float((torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")).sum())
print(json.dumps(found))
"""


def describe(context: StepContext) -> Iterator[Finding]:
    """Describe the machine; what cannot be found out is a finding, too."""
    del context
    gpu = driver_finding()
    yield gpu
    is_stand_in = bool(gpu.figures.get("stand_in"))
    yield smi_finding()
    facts = machine()
    versions = facts.pop("versions")
    yield Finding.measured("machine", {name: value for name, value in facts.items() if value is not None})
    yield Finding.measured("versions", versions)
    yield pytorch_finding(is_stand_in)
    yield from device_findings()
    libraries = loaded_libraries()
    yield Finding.measured("loaded libraries", libraries, "" if libraries else "none of CUDA's")
    yield doctor_finding(is_stand_in)


def driver_finding() -> Finding:
    """Ask the driver for the name of the first GPU, its compute capability and the driver's version of CUDA."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError as error:
        advice = "install it, or start the container with --gpus all"
        return Finding.verdict(GPU, False, f"no NVIDIA driver ({error}); {advice}")
    text, version, device = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
    major, minor = (ctypes.c_int() for _ in COMPUTE_CAPABILITY)
    calls: list[tuple[str, tuple[object, ...]]] = [
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDeviceGetName", (text, len(text), device)),
        ("cuDriverGetVersion", (ctypes.byref(version),)),
        ("cuDeviceGetAttribute", (ctypes.byref(major), COMPUTE_CAPABILITY[0], device)),
        ("cuDeviceGetAttribute", (ctypes.byref(minor), COMPUTE_CAPABILITY[1], device)),
    ]
    for function, arguments in calls:
        if status := getattr(driver, function)(*arguments):
            return Finding.verdict(
                GPU, False, f"the driver finds no usable GPU ({function}: error {status}); see nvidia-smi"
            )
    name = text.value.decode(errors="replace")
    figures: dict[str, Scalar] = {
        "name": name,
        "compute_capability": f"{major.value}.{minor.value}",
        "cuda_of_driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "stand_in": STAND_IN in name,
    }
    return Finding.verdict(GPU, True, figures=figures)


def smi_finding() -> Finding:
    """Ask nvidia-smi for what it knows of the first GPU."""
    subject, program = "nvidia-smi", shutil.which("nvidia-smi")
    if program is None:
        return Finding.skipped(subject, "is not installed")
    command = [program, f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding.failure(subject, error)
    if done.returncode:
        return Finding.verdict(subject, False, one_line(done.stdout + done.stderr)[:300])
    cells = [cell.strip() for cell in done.stdout.strip().splitlines()[0].split(",")]
    return Finding.measured(subject, dict(zip(SMI_FIELDS, cells, strict=False)))


def pytorch_finding(is_stand_in: bool) -> Finding:
    """Ask PyTorch, in a process of its own, whether it sees a GPU and can multiply on it."""
    command = [sys.executable, "-P", "-c", PYTORCH_SCRIPT]
    environment = variables(for_pytorch=True, is_stand_in=is_stand_in)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PYTORCH_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding.verdict(PYTORCH, False, f"importing PyTorch took longer than {PYTORCH_SECONDS} s")
    if done.returncode:
        return Finding.verdict(PYTORCH, False, f"PyTorch {exit_reason(done.returncode, done.stderr)}")
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["sees_gpu"]:
        cuda = f", built for CUDA {found['cuda']}" if found["cuda"] else ", built without CUDA"
        return Finding.skipped(PYTORCH, f"PyTorch sees no GPU ({found['version']}{cuda})")
    return Finding.verdict(PYTORCH, found["product"] == 64**3, figures=found)


def device_findings() -> Iterator[Finding]:
    """Look for what keeps CUDA and TensorRT from running; a missing TensorRT is no fault."""
    from runtime.devices.availability import unavailable_reason
    from runtime.devices.device import Device

    for subject, kind in ((CUDA, "cuda"), (TENSORRT, "tensorrt")):
        try:
            reason = unavailable_reason(Device(kind=kind))
        except Exception as error:  # a first run meets libraries that nobody has tried
            yield Finding.failure(subject, error)
            continue
        if reason is None:
            yield Finding.verdict(subject, True, "is available")
        elif kind == "cuda":
            yield Finding.verdict(subject, False, reason)
        else:
            yield Finding.skipped(subject, reason)


def loaded_libraries() -> dict[str, Scalar]:
    """Return the file of each of `LIBRARIES` that this process has loaded, from Linux's map of its memory."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    paths = sorted({line.split(maxsplit=5)[5].strip() for line in lines if "/" in line})
    named = {name: [path for path in paths if Path(path).name.startswith(f"{name}.so")] for name in LIBRARIES}
    return {name: ", ".join(found) for name, found in named.items() if found}


def doctor_finding(is_stand_in: bool) -> Finding:
    """Run unet-doctor in a process of its own, and tell its problems."""
    command = [sys.executable, "-P", "-c", "from runtime.commands.entry import doctor; doctor()", "--json"]
    environment = variables(for_pytorch=False, is_stand_in=is_stand_in)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOCTOR_SECONDS, env=environment, check=False
        )
        problems = json.loads(done.stdout)["problems"]
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError) as error:
        return Finding.failure("unet-doctor", error)
    text = "; ".join(f"{one['severity']}: {one['what']} ({one['do']})" for one in problems)
    return Finding.verdict("unet-doctor", done.returncode == 0, text or "no problems")
