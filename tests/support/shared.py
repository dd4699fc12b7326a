"""Networks and graphs that take seconds to make: made once for a whole test run, and kept as files for all workers."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import onnx
import torch
from filelock import FileLock


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
    """Stands in for `torch.onnx.export`: the same network exported again comes from a file.

    PyTorch needs seconds for each export, whatever the network's size. What this library makes of PyTorch's graph is
    never kept, so every test runs all of it.
    """

    def __init__(self, folder):
        self.folder, self.export = folder, torch.onnx.export

    def __call__(self, network, examples, **options):
        path = self.folder / f"{key_of(network, examples, options)}.onnx"
        made_once(path, lambda path: self.write(path, network, examples, options))
        return SimpleNamespace(model_proto=onnx.load(path))

    def write(self, path, network, examples, options):
        onnx.save(self.export(network, examples, **options).model_proto, path)


def key_of(network, examples, options):
    """A hash of all that an export follows from: modules, their settings, code and weights, examples and options."""
    shapes = [(example.dtype, example.shape) for example in examples]
    digest = hashlib.sha256(repr((shapes, sorted(options.items()))).encode())
    for name, module in network.named_modules():
        settings = sorted((key, value) for key, value in vars(module).items() if not key.startswith("_"))
        digest.update(repr((name, type(module), module, settings, type(module).forward.__code__.co_code)).encode())
    for kind in (network.named_parameters, network.named_buffers):
        for name, tensor in kind(remove_duplicate=False):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
