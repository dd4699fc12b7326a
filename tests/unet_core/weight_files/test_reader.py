"""Files with more than weights in them: plain values are read, and nothing is ever executed."""

import argparse
import collections
import datetime
import json
import pathlib
import tracemalloc
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from runtime.errors import CheckpointError
from unet_core.weight_files.reader import read_content

WEIGHTS = {"layer.weight": torch.arange(3.0)}

BESIDE = {
    "arguments": argparse.Namespace(lr=0.1, data=pathlib.Path("data")),
    "namespace": types.SimpleNamespace(a=1),
    "path": pathlib.Path("/data/images"),
    "pure path": pathlib.PureWindowsPath("C:/data"),
    "NumPy scalar": np.float64(0.5),
    "NumPy integer": np.int64(3),
    "NumPy boolean": np.bool_(True),
    "NumPy array": np.arange(4.0),
    "NumPy array of text": np.array(["a", "b"]),
    "random state": np.random.RandomState(0).get_state(),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "deque": collections.deque([1, 2], maxlen=3),
    "counter": collections.Counter("aab"),
    "date": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "duration": datetime.timedelta(seconds=3),
    "version": torch.__version__,
    "frozenset": frozenset([1, 2]),
    "size": torch.Size([1, 2]),
    "nested": {"a": [argparse.Namespace(b=(np.float32(1), pathlib.Path()))]},
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("legacy", [False, True])
def test_plain_values_beside_the_weights_are_read(tmp_path, name, legacy):
    content = {"state_dict": WEIGHTS, "beside": BESIDE[name]}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    read = read_content(tmp_path / "x.pth")
    assert torch.equal(read["state_dict"]["layer.weight"], WEIGHTS["layer.weight"])
    assert read.keys() == content.keys()


def test_namespaces_keep_their_values_and_paths_cannot_touch_the_disk(tmp_path):
    torch.save({"state_dict": WEIGHTS, "arguments": BESIDE["arguments"]}, tmp_path / "x.pth")
    read = read_content(tmp_path / "x.pth")["arguments"]
    assert (read.lr, read.data) == (0.1, pathlib.PurePosixPath("data"))
    assert not isinstance(read.data, pathlib.Path)


class Reduced:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize(
    "call",
    [
        Reduced(eval, "open('sprung', 'w')"),
        Reduced(getattr, pathlib.Path("sprung"), "touch"),
        Reduced(__import__("os").system, "touch sprung"),
        Reduced(__import__("subprocess").call, ["touch", "sprung"]),
        Reduced(collections.defaultdict, Reduced(eval, "open('sprung', 'w')")),
        Reduced(np.dtype, Reduced(eval, "open('sprung', 'w')")),
        Reduced(np.load, "sprung.npy"),
        Reduced(torch.load, "x.pth"),
        Reduced(torch.hub.load, "a/b", "c"),
    ],
)
def test_a_call_in_a_file_is_never_made(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": WEIGHTS, "beside": call}, "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: .*not.* executed|x\.pth: .*nothing of it was executed"):
        read_content(pathlib.Path("x.pth"))
    assert not pathlib.Path("sprung").exists()


def test_names_that_would_change_the_command_are_never_in_it(tmp_path):
    name = b"__main__\na;import_os\n"
    torch.save(
        {"state_dict": WEIGHTS, "beside": argparse.Namespace()},
        tmp_path / "x.pth",
        _use_new_zipfile_serialization=False,
    )
    stored = (tmp_path / "x.pth").read_bytes()
    assert b"argparse\nNamespace\n" in stored
    (tmp_path / "x.pth").write_bytes(stored.replace(b"argparse\nNamespace\n", name))
    with pytest.raises(CheckpointError) as caught:
        read_content(tmp_path / "x.pth")
    assert str(caught.value).endswith("types that have no names of Python; do not load it with any program")


@pytest.mark.parametrize("name", ["torch.Long\x7fStorage", "argparse.Name\x00space", "argparse.\x1b[31mNamespace"])
def test_names_of_types_are_never_shown_raw(tmp_path, name):
    path = tmp_path / "x.pth"
    torch.save({"beside": argparse.Namespace()}, path, _use_new_zipfile_serialization=False)
    stored = b"argparse\nNamespace\n"
    path.write_bytes(path.read_bytes().replace(stored, name.replace(".", "\n").encode() + b"\n"))
    with pytest.raises(CheckpointError, match="do not load it with any program") as caught:
        read_content(path)
    assert str(caught.value).isprintable()


def test_what_is_allowed_in_one_file_is_not_allowed_for_the_program(tmp_path):
    torch.save({"state_dict": WEIGHTS, "arguments": argparse.Namespace(a=1)}, tmp_path / "x.pth")
    before = torch.serialization.get_safe_globals()
    read_content(tmp_path / "x.pth")
    assert set(torch.serialization.get_safe_globals()) == set(before)


class Tied(nn.Module):
    """Two names for one layer, as nnU-Net's decoder has for its encoder."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = self.first


def test_tensors_that_safetensors_stores_once_have_all_their_names(tmp_path):
    network = Tied()
    save_model(network, str(tmp_path / "x.safetensors"))
    read = read_content(tmp_path / "x.safetensors")
    assert read.keys() == network.state_dict().keys()
    network.load_state_dict(read)


@pytest.mark.parametrize("name", [b"x/\xff\xff\xff\xff.pkl", b"x/\x1b[1m.pkl"])
def test_names_in_a_damaged_archive_are_never_shown_raw(tmp_path, name):
    torch.save(WEIGHTS, tmp_path / "x.pth")
    stored = (tmp_path / "x.pth").read_bytes()
    place = stored.rindex(b"x/data.pkl")
    (tmp_path / "x.pth").write_bytes(stored[:place] + name.ljust(10, b"_")[:10] + stored[place + 10 :])
    with pytest.raises(CheckpointError, match=r"x\.pth: is ") as caught:
        read_content(tmp_path / "x.pth")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}},
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in ("a", "b")},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    ],
    ids=["beyond the file", "overflow", "backwards", "overlap", "negative"],
)
@pytest.mark.parametrize("length", [None, 2**62])
def test_headers_of_safetensors_that_claim_too_much_are_refused(tmp_path, header, length):
    text = json.dumps(header).encode()
    begin = (len(text) if length is None else length).to_bytes(8, "little")
    (tmp_path / "x.safetensors").write_bytes(begin + text + bytes(4))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="is damaged, truncated or not a safetensors file"):
            read_content(tmp_path / "x.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_refused_file_does_not_spoil_the_next_one(tmp_path):
    """PyTorch checks sparse tensors at the end of a file; those of a file that failed before would be left over."""

    class Moved:
        def __reduce__(self):
            rebuild = torch._utils._rebuild_device_tensor_from_cpu_tensor
            return rebuild, (torch.arange(5.0), torch.float32, "no device", False)

    wrong = torch.sparse_coo_tensor([[7]], [1.0], (5,), check_invariants=False)
    torch.save({"a": wrong, "b": Moved()}, tmp_path / "wrong.pth", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.arange(3)}, tmp_path / "right.pth")
    with pytest.raises(CheckpointError):
        read_content(tmp_path / "wrong.pth")
    assert read_content(tmp_path / "right.pth")["a"].tolist() == [0, 1, 2]
