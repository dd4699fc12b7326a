"""Networks and graphs that take seconds to make: made once, and kept as files for all workers."""

import functools
import hashlib
import inspect
import os
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import onnx
import torch
from filelock import FileLock

EXPORTERS = ("torch", "onnx", "onnxscript")
"""Distributions whose code makes an export."""

KEPT_SECONDS = 14 * 24 * 3600
"""Age, in seconds since its last use, at which a kept export is deleted."""


def shared_folder(tmp_path_factory):
    """The temporary folder of this test run that all of its workers see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def made_once(path, make):
    """Return `path`; the first worker that asks for it calls `make(path)`, and others wait until it is complete."""
    path, done = Path(path), Path(f"{path}.done")
    with FileLock(f"{path}.lock"):
        if not done.exists():
            make(path)
            done.touch()
    return path


class SharedExports:
    """Stands in for `torch.onnx.export`: the same network exported again comes from a file, also in the next test run.

    PyTorch needs seconds for each export, whatever the network's size. What this library makes of PyTorch's graph is
    never kept, so every test runs all of it. `pytest --cache-clear` deletes what is kept.
    """

    def __init__(self, folder):
        self.folder, self.export = folder, torch.onnx.export
        for done in folder.glob("*.done"):
            if done.stat().st_mtime < time.time() - KEPT_SECONDS:
                for kept in folder.glob(f"{done.stem}*"):
                    kept.unlink(missing_ok=True)

    def __call__(self, network, examples, **options):
        path = self.folder / f"{key_of(network, examples, options)}.onnx"
        made_once(path, lambda path: self.write(path, network, examples, options))
        Path(f"{path}.done").touch()
        return SimpleNamespace(model_proto=onnx.load(path))

    def write(self, path, network, examples, options):
        onnx.save(self.export(network, examples, **options).model_proto, path)


def key_of(network, examples, options):
    """A hash of all that an export follows from: modules (code, settings, weights), examples, options, versions."""
    shapes = [(example.dtype, example.shape) for example in examples]
    versions = [version(distribution) for distribution in EXPORTERS]
    digest = hashlib.sha256(repr((shapes, sorted(options.items()), versions)).encode())
    for name, module in network.named_modules():
        settings = sorted((key, value) for key, value in vars(module).items() if not key.startswith("_"))
        digest.update(repr((name, type(module), module, settings, code_of(type(module)))).encode())
    for kind in (network.named_parameters, network.named_buffers):
        for name, tensor in kind(remove_duplicate=False):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@functools.cache
def code_of(kind):
    """A hash of the files in which a module's class and its base classes stand."""
    files = {inspect.getsourcefile(base) for base in inspect.getmro(kind) if issubclass(base, torch.nn.Module)}
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in sorted(files))).hexdigest()
