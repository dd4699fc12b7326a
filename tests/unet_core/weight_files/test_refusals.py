"""Files of other kinds are named, and the command that a message gives works as it stands."""

import argparse
import contextlib
import decimal
import functools
import pickle
import re
import shlex
import subprocess
import sys
import timeit
import types
import warnings
import webbrowser
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from runtime.errors import CheckpointError
from unet_core.weight_files.reader import read_content

CODE = """
import sys
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x):
        return self.layer(x)


class Settings:
    pass


def save(kind, path):
    torch.manual_seed(0)
    net = Net().eval()
    if kind == "script":
        torch.jit.save(torch.jit.script(net), path)
    elif kind == "trace":
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 8, 8)), path)
    elif kind == "program":
        torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 8, 8),)), path)
    elif kind == "module":
        torch.save(net, path)
    elif kind == "parallel module":
        torch.save(torch.nn.DataParallel(net), path)
    elif kind == "module in an entry":
        torch.save({"epoch": 3, "model": net}, path)
    elif kind == "settings":
        torch.save({"hyper_parameters": {"settings": Settings()}, "state_dict": net.state_dict()}, path)
    else:
        torch.save({"settings": Settings(), "model": net, "state_dict": net.state_dict()}, path)
    torch.save(net.state_dict(), "expected.pth")


if __name__ == "__main__":
    for kind in sys.argv[1:]:
        save(kind, f"main {kind}.pth")
"""

KINDS = {
    "script": "is a TorchScript archive, as torch.jit.save writes it, and not weights alone; to save its weights as",
    "trace": "is a TorchScript archive, as torch.jit.save writes it, and not weights alone; to save its weights as",
    "program": "is an exported program, as torch.export.save writes it, and not weights alone; to save its weights as",
    "module": "is a whole pickled Net, as torch.save(model) writes it, and not its weights; nothing of it was",
    "parallel module": "is a whole pickled DataParallel, as torch.save(model) writes it, and not its weights; nothing",
    "module in an entry": "holds a whole pickled Net under 'model', and not its weights; nothing of it was executed.",
    "settings": "holds an object of net.Settings beside its weights; nothing of it was executed. If you trust it",
    "both": "beside its weights; nothing of it was executed. If you trust it, where net can be imported, to",
}


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        read_content(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a space and a quote in its name: net.py, a file of each kind, and two that net.py wrote itself."""
    folder = tmp_path_factory.mktemp("refusals") / "it's a folder"
    folder.mkdir()
    (folder / "net.py").write_text(CODE)
    script = f"import net\nfor kind in {list(KINDS)}: net.save(kind, kind + '.v1.pth')"
    for arguments in (["-c", script], ["net.py", "module", "settings"]):
        subprocess.run([sys.executable, "-W", "ignore", *arguments], check=True, cwd=folder)
    return folder


@pytest.fixture
def folder(made, monkeypatch):
    """The current folder."""
    monkeypatch.chdir(made)
    monkeypatch.syspath_prepend(str(made))
    monkeypatch.delitem(sys.modules, "net", raising=False)
    yield made
    sys.modules.pop("net", None)


def saved_by_advice(text, *, shell=False):
    """Run the command at the end of a message, and return the content of the file that the message promises."""
    command = text.partition("run: ")[2]
    program, option, code = shlex.split(command)
    assert (program, option) == ("python", "-c")
    if shell:
        subprocess.run(command.replace("python", shlex.quote(sys.executable), 1), shell=True, check=True)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, that TorchScript is deprecated
            exec(code, {"__name__": "advice"})
    return read_content(Path(re.search(r"to save its weights as ([^,]*), (for --network.*, )?run: ", text)[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_more_than_weights_is_named_and_the_command_saves_its_weights(folder, kind):
    text = refusal(Path(f"{kind}.v1.pth"))
    assert KINDS[kind] in text
    takes = "--network net:Net" if "module" in kind and "parallel" not in kind else "--network"
    assert (f", for {takes}, run: " in text) == (kind not in ("settings", "both"))
    saved = saved_by_advice(text, shell=kind == "script")
    found = {name.removeprefix("module."): value for name, value in saved.items()}
    expected = torch.load("expected.pth")
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("kind", ["module", "settings"])
def test_classes_of_a_program_are_imported_from_it(folder, kind):
    text = refusal(Path(f"main {kind}.pth"))
    name = "Net" if kind == "module" else "Settings"
    assert (", for --network PROGRAM.py:Net, run: " in text) == (kind == "module")
    assert f"If you trust it, where PROGRAM (the file that defines {name}) can be imported, to save" in text
    saved = saved_by_advice(text.replace("from PROGRAM", "from net"), shell=True)
    assert saved.keys() == torch.load("expected.pth").keys()


def test_a_module_of_pytorch_needs_nothing_else(folder):
    torch.save(nn.Sequential(nn.Conv2d(3, 1, 1)), "x.pth")
    text = refusal(Path("x.pth"))
    assert text.startswith("is a whole pickled Sequential, as torch.save(model) writes it, and not its weights; ")
    assert "If you trust it, to save its weights as x-weights.pth, for --network, run: python -c " in text
    assert list(saved_by_advice(text)) == ["0.weight", "0.bias"]


class Reduced:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


WEIGHTS = {"layer.weight": torch.arange(3.0)}

DANGEROUS = {
    "timeit.timeit": Reduced(timeit.timeit, "1"),
    "webbrowser.open": Reduced(webbrowser.open, "https://example.org"),
    "torch.hub.load": Reduced(torch.hub.load, "a/b", "c"),
    "torch.serialization.load": Reduced(torch.load, "x.pth"),
    "numpy.load": Reduced(np.load, "x.npy"),
    "numpy.memmap": Reduced(np.memmap, "x.npy"),
    "_pickle.loads": Reduced(pickle.loads, b""),
    "types.new_class": Reduced(types.new_class, "Kind"),
    "argparse.FileType": Reduced(argparse.FileType, "w"),
    "torch.package.package_importer.PackageImporter": Reduced(torch.package.PackageImporter, "x.pth"),
    "torch.nn.functional.handle_torch_function": Reduced(nn.functional.handle_torch_function, 1),
}


@pytest.mark.parametrize("name", DANGEROUS)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_calls_what_no_weights_need_is_recommended_to_nobody(tmp_path, name, legacy):
    content = {"state_dict": WEIGHTS, "beside": DANGEROUS[name]}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    text = refusal(tmp_path / "x.pth")
    assert "do not load it with any program" in text and "run: python" not in text
    assert re.search(rf"asks for [\w.]*\b{name.rpartition('.')[2]},", text)


@pytest.mark.parametrize(
    "beside",
    [Reduced(bytes), complex(1, 2), {1}, decimal.Decimal("0.5"), functools.partial(dict), np.random.default_rng(0)],
    ids=lambda value: type(value).__name__,
)
def test_plain_values_are_not_called_dangerous(tmp_path, beside):
    torch.save({"state_dict": WEIGHTS, "beside": beside}, tmp_path / "x.pth")
    with contextlib.suppress(CheckpointError):
        assert "beside" in read_content(tmp_path / "x.pth")
        return
    assert "beside its weights; nothing of it was executed. If you trust it" in refusal(tmp_path / "x.pth")


def test_a_network_with_functions_of_pytorch_is_not_called_dangerous(tmp_path):
    torch.save(nn.TransformerEncoderLayer(8, 2, activation=nn.functional.gelu), tmp_path / "x.pth")
    assert refusal(tmp_path / "x.pth").startswith("is a whole pickled TransformerEncoderLayer")
    torch.save(nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU(), nn.Sigmoid(), nn.BatchNorm2d(1)), tmp_path / "x.pth")
    assert refusal(tmp_path / "x.pth").startswith("is a whole pickled Sequential")


def test_classes_within_classes_are_imported_by_their_outer_name(tmp_path):
    torch.save({"state_dict": WEIGHTS, "beside": argparse.Namespace()}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value.replace(b"argparse\nNamespace\n", b"__main__\nOuter.Inner\n"))
    assert "from PROGRAM import Outer; import torch" in refusal(tmp_path / "x.pth")


def test_a_large_file_of_many_types_is_read_once(tmp_path, monkeypatch):
    kinds = [type(f"Kind{number}", (), {"__module__": __name__}) for number in range(40)]
    for kind in kinds:
        monkeypatch.setitem(globals(), kind.__name__, kind)
    torch.save({"state_dict": WEIGHTS, "beside": [kind() for kind in kinds]}, tmp_path / "x.pth")
    loads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: loads.append(options) or load(*args, **options))
    assert "beside its weights; nothing of it was executed" in refusal(tmp_path / "x.pth")
    assert len(loads) == 3 and loads[-1]["mmap"]  # as it is, with plain types, and with stand-ins


HEADS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n": "is a pointer of Git LFS, not the file itself",
    b"<!DOCTYPE html><html>": "is a web page, such as a download that failed; download the file again",
    b"\x89HDF\r\n\x1a\n": "is an HDF5 file, such as Keras writes; expected weights of PyTorch",
    b"GGUF\x03\0\0\0": "is a GGUF file; expected weights of PyTorch",
    b"\x1f\x8b\x08\0": "is compressed by gzip; unpack it, and give the checkpoint in it",
    b"\x89PNG\r\n": "is an image; expected weights of PyTorch",
    b'{"weight_map": {}}': "is text, such as JSON; expected weights of PyTorch, which are in another file",
    b"\x08\x0a\x12\x07pytorch": "looks like an ONNX file, expected the checkpoint that it was exported from",
    bytes(257) + b"ustar" + bytes(250): "is a tar archive; unpack it, and give the checkpoint in it",
}


@pytest.mark.parametrize("head", HEADS)
def test_files_of_other_kinds_are_named(tmp_path, head):
    (tmp_path / "x.pth").write_bytes(head)
    assert refusal(tmp_path / "x.pth").startswith(HEADS[head])


def test_archives_of_other_things_are_named(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    assert refusal(tmp_path / "x.npz") == "is an archive of NumPy arrays; expected weights of PyTorch"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for index in range(4):
            archive.writestr(f"fold_{index}/model.txt", "")
    assert refusal(tmp_path / "x.zip") == (
        "is a zip archive of fold_0/model.txt, fold_1/model.txt, fold_2/model.txt, ...; unpack it, and give the "
        "checkpoint in it"
    )
