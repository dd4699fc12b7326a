"""Damaged checkpoints: refused, or read with exactly the content that they had."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from families import Milesial, randomised
from networks import make_card, make_network
from safetensors.torch import save_file

from runtime.errors import CheckpointError
from unet_core.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One small file of each kind, its bytes, and what it holds."""
    folder = tmp_path_factory.mktemp("checkpoints")
    network = make_network()
    theirs = randomised(Milesial(widths=(4, 8))).state_dict()
    card = make_card(network)
    save_checkpoint(folder / "model.pth", network.state_dict(), card)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    run = {"optimizer": optimizer.state_dict(), "history": [{"epoch": 1, "lr": 0.1}], "random": torch.get_rng_state()}
    save_checkpoint(folder / "run.pth.tar", make_network().state_dict(), card, **run)
    torch.save({"state_dict": theirs, "epoch": 3}, folder / "theirs.pth")
    torch.save(theirs, folder / "older.pth", _use_new_zipfile_serialization=False)
    save_file(theirs, folder / "theirs.safetensors")
    return [(path.name, path.read_bytes(), load_checkpoint(path)) for path in sorted(folder.iterdir())]


def flip_a_bit(random, data):
    place = random.integers(len(data))
    data[place] ^= 1 << int(random.integers(8))


def flip_many(random, data):
    for _ in range(int(random.integers(2, 50))):
        flip_a_bit(random, data)


def cut(random, data):
    del data[int(random.integers(len(data))) :]


def cut_out(random, data):
    start = int(random.integers(len(data)))
    del data[start : start + int(random.integers(1, 5000))]


def overwrite(random, data):
    start = int(random.integers(len(data)))
    data[start : start + 512] = random.bytes(len(data[start : start + 512]))


def clear(random, data):
    start = int(random.integers(len(data))) // 512 * 512
    data[start : start + 512] = bytes(len(data[start : start + 512]))


def insert(random, data):
    start = int(random.integers(len(data)))
    data[start:start] = random.bytes(int(random.integers(1, 100)))


def repeat(random, data):
    start, length = int(random.integers(len(data))), int(random.integers(1, 5000))
    data[start:start] = data[start : start + length]


DAMAGES = (flip_a_bit, flip_a_bit, flip_a_bit, flip_many, cut, cut_out, overwrite, clear, insert, repeat)

OPCODES = [
    value for name, value in vars(pickle).items() if name.isupper() and isinstance(value, bytes) and len(value) == 1
]


def change_pickle(random, data):
    """Change the pickle of a zip and write a right checksum, as who means harm would do."""
    source = zipfile.ZipFile(io.BytesIO(bytes(data)))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for record in source.infolist():
            content = bytearray(source.read(record))
            if record.filename.endswith("data.pkl"):
                for _ in range(int(random.integers(1, 6))):
                    change = (change_opcode, change_number, flip_a_bit, repeat, cut_out)[int(random.integers(5))]
                    change(random, content)
            archive.writestr(record.filename, bytes(content))
    data[:] = target.getvalue()


def change_opcode(random, data):
    if data:
        data[int(random.integers(len(data)))] = OPCODES[int(random.integers(len(OPCODES)))][0]


def change_number(random, data):
    if len(data) > 4:
        place = int(random.integers(len(data) - 4))
        data[place : place + 4] = struct.pack("<i", int(random.choice([2**31 - 1, -1, 10**8, -(2**31)])))


def assert_same(found, expected, where="content"):
    assert type(found) is type(expected), where
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, expected), f"{where} differs"
    elif isinstance(found, dict):
        assert found.keys() == expected.keys(), where
        for key in found:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected), where
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, where)
    else:
        assert found == expected, f"{where} differs"


@pytest.fixture
def attempt(files, tmp_path):
    def attempt(random):
        name, data, expected = files[int(random.integers(len(files)))]
        is_zip = data.startswith(b"PK")
        data = bytearray(data)
        hostile = is_zip and random.random() < 0.25
        damage = change_pickle if hostile else DAMAGES[int(random.integers(len(DAMAGES)))]
        damage(random, data)
        path = Path(tmp_path / name)
        path.write_bytes(data)
        try:
            found = load_checkpoint(path)
        except CheckpointError as error:
            if not str(error).isprintable():
                raise ValueError(f"a message that is no line: {error!r}") from error
            return "refused: CheckpointError"
        if hostile:
            return "right checksum, accepted"
        try:
            assert_same(dict(found.state_dict), dict(expected.state_dict), "weights")
            assert_same(found.extra, expected.extra, "extra")
            assert found.card.to_json() == expected.card.to_json(), "card"
        except AssertionError:
            if is_zip:
                raise
            return "format without checksums, accepted"
        return "same content"

    return attempt


def test_damaged_checkpoints_are_refused_or_read_as_they_were(campaign, attempt):
    campaign.run("checkpoints", attempt, share=0.1)
