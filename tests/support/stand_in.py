"""A stand-in for NVIDIA's driver and libraries, which computes nothing: ONNX Runtime's own CUDA provider runs on it.

Options, the placement of nodes, copies, the memory arena and a full card, cuDNN's plans, CUDA graphs and IO binding are
then ONNX Runtime's real code. Answers and times are not. The sources are in `cuda_stand_in`; what they do not define
does nothing and succeeds, by the names that ONNX Runtime's library asks for.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

SOURCES = Path(__file__).parent / "cuda_stand_in"
ROOT = Path(__file__).parents[2]
PROVIDER = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
SOURCE_OF = {
    "libcuda": "driver.c",
    "libcudart": "runtime.c",
    "libcudnn": "cudnn.c",
    "libnvinfer": "tensorrt.c",
    "libnvonnxparser": "tensorrt_parser.c",
}
CUDNN = "libcudnn.so.9"
TENSORRT = ("libnvinfer.so.10", "libnvonnxparser.so.10")
CUDNN_PARTS = ("libcudnn_graph.so.9", "libcudnn_ops.so.9")
"""Libraries that the real cuDNN opens when it needs them; the stand-in's are empty."""

HEADERS = (("triton", "backends/nvidia/include"), ("nvidia", "cu13/include"), ("nvidia", "cudnn/include"))
"""Packages that hold CUDA's and cuDNN's headers; PyTorch's build for CUDA brings them."""

TIMEOUT = 120


class UnbuiltError(Exception):
    """The stand-in cannot be built here; the text says why."""


@dataclass(frozen=True)
class Ran:
    """A program's run on the stand-in: its exit status, its output, and its calls, a line each."""

    returncode: int
    stdout: str
    stderr: str
    calls: list[str]

    @property
    def answer(self):
        """The JSON of the last line that the program printed."""
        return json.loads(self.stdout.splitlines()[-1])

    def part(self, name):
        """The calls between `mark(name)` and the next mark; see `on_stand_in`."""
        start = self.calls.index(f"mark {name}") + 1
        end = next((place for place in range(start, len(self.calls)) if self.calls[place].startswith("mark ")), None)
        return self.calls[start:end]


class StandIn:
    """The built libraries, and programs that run on them."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def environment(self, *, tensorrt=False, **environment):
        """The environment in which a program finds the stand-in, of TensorRT too if asked, and nothing else of CUDA."""
        folders = [self.folder, self.folder / "tensorrt"] if tensorrt else [self.folder]
        libraries = [str(path) for folder in folders for path in sorted(folder.glob("lib*.so.*"))]
        return {
            **os.environ,
            "LD_PRELOAD": ":".join(libraries),
            "LD_LIBRARY_PATH": ":".join(map(str, folders)),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support"))),
            **environment,
        }

    def run(self, code, *arguments, fails=False, **environment):
        """Run Python code in a process of its own and return what it did; `environment` is as of that method."""
        log = self.folder / f"calls-{os.getpid()}"
        log.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=self.environment(STAND_IN_CALLS=str(log), **environment),
            cwd=ROOT,
            timeout=TIMEOUT,
            check=False,
        )
        assert fails or done.returncode == 0, f"exit status {done.returncode}: {done.stdout}{done.stderr}"
        calls = log.read_text().splitlines() if log.exists() else []
        return Ran(done.returncode, done.stdout, done.stderr, calls)


def build(folder):
    """Compile the stand-in's libraries into a folder.

    Raises:
        UnbuiltError: there is no compiler, there are no headers, or ONNX Runtime has no CUDA provider.
    """
    for tool in ("gcc", "nm", "readelf"):
        if not shutil.which(tool):
            raise UnbuiltError(f"{tool} is not installed")
    if not PROVIDER.exists():
        raise UnbuiltError("the installed ONNX Runtime has no CUDA provider")
    folders = [path for package, part in HEADERS for path in package_folders(package, part)]
    for header in ("cuda_runtime_api.h", "crt/host_defines.h", "cudnn_graph.h"):
        if not any((path / header).exists() for path in folders):
            raise UnbuiltError(f"there is no {header}, which PyTorch's build for CUDA brings")
    folder = Path(folder)
    (folder / "tensorrt").mkdir(parents=True)
    for soname, names in wanted_functions().items():
        compile_library(folder, soname, names, folders)
    for soname in TENSORRT:
        compile_library(folder / "tensorrt", soname, set(), folders)
    return folder


def package_folders(package, part):
    """The folders `part` of an installed package."""
    found = importlib.util.find_spec(package)
    places = (found.submodule_search_locations or ()) if found else ()
    return [path for place in places if (path := Path(place) / part).is_dir()]


def wanted_functions():
    """The names that ONNX Runtime's CUDA provider asks each library for, by the library's name.

    cuDNN is opened while the provider runs, so it is not among the libraries that it is linked against.
    """
    needed = output_of("readelf", "-d", PROVIDER)
    wanted = {name: set() for name in re.findall(r"\[(libcu[^]]+)\]", needed)}
    for name, soname in re.findall(r" U (\w+)@(\S+)", output_of("nm", "-D", "--undefined-only", PROVIDER)):
        if soname in wanted:
            wanted[soname].add(name)
    functions = re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", PROVIDER.read_bytes())
    return wanted | {CUDNN: {name.decode() for name in functions}} | {name: set() for name in CUDNN_PARTS}


def compile_library(folder, soname, names, headers):
    """Compile a library from its source, if there is one, and from functions that do nothing for all other names."""
    rest = folder / f"{soname.partition('.')[0]}.c"
    rest.write_text("#include <stdlib.h>\n" + "".join(map(empty_function, sorted(names))))
    versions = rest.with_suffix(".map")
    versions.write_text(f"{soname} {{ global: *; }};\n")
    source = SOURCE_OF.get(soname.partition(".")[0])
    versioned = soname.startswith(("libcudart", "libcublas"))
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", *(f"-I{path}" for path in headers), f"-Wl,-soname,{soname}"]
    command += [f"-Wl,--version-script={versions}"] if versioned else []
    command += [str(rest), *([str(SOURCES / source)] if source else []), "-o", str(folder / soname)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        raise UnbuiltError(f"{soname} cannot be compiled: {done.stderr.splitlines()[0]}")


def empty_function(name):
    """C code of a function that succeeds; one that creates something gives a box. A real definition replaces it."""
    weak = "__attribute__((weak))"
    if re.search(r"Get(Status|Error)(Name|String)", name):
        return f'{weak} const char *{name}(void) {{ return "stand-in"; }}\n'
    if "Create" in name:
        return f"{weak} int {name}(void **made) {{ *made = calloc(1, 256); return 0; }}\n"
    return f"{weak} int {name}(void) {{ return 0; }}\n"


def output_of(*command):
    """Run a command and return the text that it prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout
