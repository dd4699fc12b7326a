"""Pickles of a few bytes that ask for far more: refused before PyTorch reads them, in no time and no memory."""

import pickle
import re
import resource
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from runtime.errors import CheckpointError
from unet_core.weight_files import pickle_check
from unet_core.weight_files.integrity import DOS_FOLDER
from unet_core.weight_files.reader import read_content

HUGE = 2 * 10**9


def long1(number):
    data = pickle.encode_long(number)
    return b"\x8a" + bytes([len(data)]) + data


def called(name, arguments):
    """The opcodes of a call: a global's name, and the opcodes of its arguments."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n(" + arguments + b"tR"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def beside(code):
    """A pickle with something beside the weights."""
    return b"\x80\x02}" + text("beside") + code + b"s."


def stored_tensor(
    count, size, stride, kind="torch FloatStorage", record="0", function="torch._utils _rebuild_tensor_v2"
):
    storage = b"(" + text("storage") + b"c" + kind.replace(" ", "\n").encode() + b"\n" + text(record) + text("cpu")
    numbers = [b"(" + b"".join(map(long1, part)) + b"t" for part in (size, stride)]
    return called(function, storage + long1(count) + b"tQ" + b"K\x00" + b"".join(numbers) + b"\x89)")


def sparse_tensor(size, stride, value_size, value_stride):
    """A sparse tensor of these indices and values, all in one storage of one int64."""
    layout = called("torch.serialization _get_layout", text("torch.sparse_coo"))
    parts = [stored_tensor(1, *part, kind="torch CharStorage") for part in ((size, stride), (value_size, value_stride))]
    return called("torch._utils _rebuild_sparse_tensor", layout + b"(" + b"".join(parts) + b"(K\x0aK\x00t\x89t")


def quantized_tensor(size, quantizer, stride=None):
    storage = stored_tensor(1, [], [], kind="torch QInt8Storage").partition(b"\n_rebuild_tensor_v2\n(")[2].split(b"Q")
    numbers = [b"(" + b"".join(map(long1, part)) + b"t" for part in (size, stride or [1] * len(size))]
    code = b"Q".join(storage[:2]) + b"QK\x00" + b"".join(numbers) + b"(" + quantizer + b"t\x89)"
    return called("torch._utils _rebuild_qtensor", code)


def write(path, code, method=zipfile.ZIP_STORED, records=(("data/0", bytes(4)),)):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x/data.pkl", code)
        for name, data in (("version", b"3\n"), ("byteorder", b"little"), *records):
            archive.writestr(f"x/{name}", data)
    return path


def doubled(start, step, count):
    """Opcodes of a value that is put into a new one, twice, again and again, by references."""
    code = start + b"q\x00"
    for index in range(count):
        code += step.replace(b"@", b"h" + bytes([index])) + b"q" + bytes([index + 1])
    return code


LISTS = doubled(b"]K\x01a", b"](@@e", 60)
TUPLES = doubled(b"K\x01\x85", b"@@\x86", 61)
GIVEN = long1(HUGE)
MAGIC, VERSION = (b"\x80\x02" + long1(number) + b"." for number in (0x1950A86A20F9469CFC6C, 1001))
"""The first two pickles of PyTorch's older format."""

BOMBS = {
    "bytearray": (called("builtins bytearray", GIVEN), "calls builtins.bytearray as no checkpoint does"),
    "tensor by size": (called("torch FloatTensor", GIVEN), "calls torch.FloatTensor as no checkpoint does"),
    "tensor class": (called("torch Tensor", GIVEN), "calls torch.Tensor as no checkpoint does"),
    "storage by size": (
        called("torch.storage UntypedStorage", GIVEN),
        "calls torch.storage.UntypedStorage as no checkpoint does",
    ),
    "encoding that grows": (
        called("_codecs encode", text("a") + text("utf-32")),
        "calls _codecs.encode as no checkpoint does",
    ),
    "text in an encoding": (
        called("builtins str", text("a") + text("idna")),
        "calls builtins.str as no checkpoint does",
    ),
    "text of a list": (LISTS + called("builtins str", b"h\x3c"), "calls builtins.str as no checkpoint does"),
    "text copied again and again": (
        b"](" + text("a" * 10**6) + b"q\x00" + called("builtins str", b"h\x00") * 200 + b"e",
        r"would take more than [\d,]+ bytes of memory, far more than its own size",
    ),
    "a call of a list": (LISTS + b")R", "calls something that is no function"),
    "a new object of a list": (LISTS + b")\x81", "calls something that is no function"),
    "key that is hashed for ever": (
        b"}(" + TUPLES + b"u",
        "has too many keys that are tuples or large numbers; comparing them might take minutes",
    ),
    "set that is hashed for ever": (
        called("builtins set", b"](" + TUPLES + b"e"),
        "has too many keys that are tuples or large numbers; comparing them might take minutes",
    ),
    "keys of equal hashes": (
        b"}(" + b"".join(long1((2**61 - 1) * (index + 1)) + b"N" for index in range(20_000)) + b"u",
        "has too many keys that are tuples or large numbers; comparing them might take minutes",
    ),
    "storage without values": (
        stored_tensor(HUGE, [1], [1]),
        "has a storage of 8,000,000,000 bytes, of which it holds 4 at most",
    ),
    "key of a storage": (
        called(
            "torch._utils _rebuild_tensor_v2",
            b"(" + text("storage") + b"ctorch\nFloatStorage\n" + LISTS + b"K\x01K\x01tQ",
        ),
        "has a storage without a proper kind, key and size",
    ),
    "tensor beyond its storage": (
        stored_tensor(1, [HUGE], [1]),
        "has a tensor that ends outside of its storage",
    ),
    "tensor of one value": (
        stored_tensor(1, [10**6, 10**6], [0, 0]),
        r"would take more than [\d,]+ bytes of memory, far more than its own size",
    ),
    "tensor of one value that is moved": (
        called(
            "torch._utils _rebuild_device_tensor_from_cpu_tensor",
            stored_tensor(1, [HUGE], [0]) + b"ctorch\nfloat64\n" + text("cpu") + b"\x89",
        ),
        r"would take more than [\d,]+ bytes of memory, far more than its own size",
    ),
    "sparse tensor of one index": (
        sparse_tensor([1, HUGE], [0, 0], [HUGE, 0], [0, 0]),
        r"would take more than [\d,]+ bytes of memory, far more than its own size",
    ),
    "quantized tensor of one scale": (
        quantized_tensor([HUGE, 0], b"ctorch\nper_channel_affine\n" + stored_tensor(1, [HUGE], [0]) * 2 + b"K\x00"),
        r"would take more than [\d,]+ bytes of memory, far more than its own size",
    ),
    "quantized tensor of nested scales": (
        quantized_tensor([1], b"ctorch\nper_channel_affine\n" + LISTS + LISTS + b"K\x00"),
        "calls torch._utils._rebuild_qtensor as no checkpoint does",
    ),
    "size that is multiplied for ever": (
        stored_tensor(1, [2**63 - 1] * 100_000, [0] * 100_000),
        "calls torch._utils._rebuild_tensor_v2 as no checkpoint does",
    ),
    "quantized tensor": (
        quantized_tensor([HUGE], b"ctorch\nper_tensor_affine\nG" + struct.pack(">d", 1) + b"K\x00", [0]),
        r"would take more than [\d,]+ bytes of memory, far more than its own size",
    ),
    "lists within lists": (
        b"](" + LISTS + b"e",
        r"refers to its parts so often that it unfolds to more than [\d,]+ of them",
    ),
    "a list within itself": (b"]q\x00h\x00a", "holds a part that is within itself"),
    "tuples within tuples": (b")" + b"\x85" * 10**5, "has tuples that are nested deeper than 100"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_take_more_than_its_file_is_refused(tmp_path, name):
    code, reason = BOMBS[name]
    path = write(tmp_path / "x.pth", beside(code))
    tracemalloc.start()
    begun = time.process_time()
    try:
        with pytest.raises(CheckpointError, match=re.escape(str(path)) + ": " + reason):
            read_content(path)
        assert time.process_time() - begun < 2
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_bytes_of_a_bomb_are_refused_where_memory_is_short(tmp_path):
    """A few bytes that ask for 20 GB, in a process that may take 8."""
    code = b"\x80\x02" + called("builtins bytearray", long1(20 * 10**9)) + b"."
    assert len(code) < 41
    path = write(tmp_path / "x.pth", code)
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom runtime.errors import CheckpointError\n"
        "from unet_core.weight_files.reader import read_content\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_content(Path(sys.argv[1]))\nexcept CheckpointError as error:\n    print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (8 * 2**30, 8 * 2**30))  # noqa: E731
    done = subprocess.run(
        [sys.executable, "-c", program, path], preexec_fn=limit, capture_output=True, text=True, check=True
    )
    message, grown = done.stdout.splitlines()
    assert message == f"{path}: calls builtins.bytearray as no checkpoint does"
    assert int(grown) < 50  # MB


@pytest.mark.parametrize("name", ["bytearray", "storage without values", "lists within lists", "a call of a list"])
def test_older_files_are_looked_at_too(tmp_path, name):
    code, reason = BOMBS[name]
    path = tmp_path / "x.pth"
    path.write_bytes(MAGIC + VERSION + b"\x80\x02}." + beside(code.replace(b"tQ", b"NtQ")) + b"\x80\x02].")
    reason = reason.replace("4 at most", r"\d+ at most")
    with pytest.raises(CheckpointError, match=reason):
        read_content(path)


def test_head_of_an_older_file_is_never_written_into_a_message(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(MAGIC + b"\x80\x02" + LISTS + b"." + b"\x80\x02}." * 2 + b"\x80\x02].")
    with pytest.raises(CheckpointError, match="has a head that PyTorch does not write"):
        read_content(path)


def test_number_of_values_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_check, "MOST_STEPS", 1000)
    path = write(tmp_path / "x.pth", beside(b"](" + b"N" * 1000 + b"e"))
    with pytest.raises(CheckpointError, match="has more than 1,000 values beside its weights"):
        read_content(path)


def test_tensor_that_is_copied_again_and_again_is_refused(tmp_path):
    copy = called(
        "torch._utils _rebuild_device_tensor_from_cpu_tensor", b"h\x00ctorch\nfloat64\n" + text("cpu") + b"\x89"
    )
    code = b"](" + stored_tensor(10**5, [10**5], [1]) + b"q\x00" + copy * 20 + b"e"
    path = write(tmp_path / "x.pth", beside(code), records=[("data/0", bytes(4 * 10**5))])
    with pytest.raises(CheckpointError, match=r"would take more than 7,[0-9,]+ bytes of memory"):
        read_content(path)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions", "ignore:Sparse CSR tensor support")
def test_tensors_of_other_layouts_and_devices_are_read(tmp_path):
    """Sparse, packed and complex ones, and one of a TPU, whose values PyTorch stores on the CPU."""

    class Moved:
        def __reduce__(self):
            rebuild = torch._utils._rebuild_device_tensor_from_cpu_tensor
            return rebuild, (torch.arange(5.0), torch.bfloat16, "xla:0", False)

    packed = torch.quantize_per_channel(torch.rand(4, 10), torch.ones(4), torch.zeros(4), 0, torch.quint4x2)
    content = {"sparse": torch.eye(5).to_sparse(), "rows": torch.eye(6).to_sparse_csr(), "packed": packed}
    content |= {"complex": torch.rand(7).to(torch.complex64), "moved": Moved()}
    torch.save(content, tmp_path / "x.pth")
    read = read_content(tmp_path / "x.pth")
    assert read["moved"].dtype == torch.bfloat16
    assert read["moved"].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(read["sparse"].to_dense(), torch.eye(5))
    assert torch.equal(read["rows"].to_dense(), torch.eye(6))
    assert torch.equal(read["packed"].dequantize(), packed.dequantize())
    assert torch.equal(read["complex"], content["complex"])


def test_number_of_calls_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_check, "MOST_CALLS", 100)
    path = write(tmp_path / "x.pth", beside(b"](" + called("torch Size", b")") * 101 + b"e"))
    with pytest.raises(CheckpointError, match="has more than 100 objects beside its weights"):
        read_content(path)


def test_larger_files_may_hold_more_values(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_check, "MOST_STEPS", 1000)
    path = write(tmp_path / "x.pth", beside(b"](" + b"N" * 1000 + b"e"), records=[("data/0", bytes(8000))])
    assert read_content(path)["beside"] == [None] * 1000


def test_zip_bombs_are_refused(tmp_path):
    path = write(tmp_path / "x.pth", beside(b"N"), zipfile.ZIP_DEFLATED, [("data/0", bytes(2 * 10**7))])
    assert path.stat().st_size < 30_000
    with pytest.raises(CheckpointError, match="unpacks to more than 16 times its size"):
        read_content(path)


def test_two_records_of_one_name_are_refused(tmp_path):
    path = write(tmp_path / "x.pth", beside(b"N"), records=[("DATA.pkl", beside(b"K\x01"))])
    with pytest.raises(CheckpointError, match="has two records of one name"):
        read_content(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_without_values_are_named(tmp_path, legacy):
    weights = {"a": torch.zeros(2), "layer.weight": torch.empty(3, 4, device="meta")}
    torch.save({"state_dict": weights}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError,
        match=r"x\.pth: holds layer\.weight as a tensor of the device meta, which has no values; save the network",
    ):
        read_content(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions")
@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_that_share_values_are_read(tmp_path, legacy):
    whole = torch.arange(12.0)
    content = {"whole": whole, "part": whole[2:5], "turned": whole.view(3, 4).T, "wide": whole[:1].expand(3, 4)}
    content |= {"half": whole.half(), "none": torch.zeros(0, 3)}
    content |= {"quantized": torch.quantize_per_tensor(whole, 0.1, 3, torch.quint8), "same": whole}
    content |= {} if legacy else {"eight": whole.to(torch.float8_e4m3fn)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    read = read_content(tmp_path / "x.pth")
    assert read["same"] is read["whole"]
    for name, value in content.items():
        same = [one.dequantize() if one.is_quantized else one.float() for one in (read[name], value)]
        assert torch.equal(*same), name


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_content(tmp_path / "x.pth")["a"].tolist() == [0, 1, 2]


def test_a_changed_weight_of_any_zip_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "theirs.pth"
    torch.save({"a": torch.full((100,), 3.0)}, path)
    stored = bytearray(path.read_bytes())
    stored[stored.index(struct.pack("<f", 3.0) * 3) + 2] ^= 1
    path.write_bytes(stored)
    with pytest.raises(CheckpointError) as caught:
        read_content(Path(path))
    assert str(caught.value) == f"{path}: is damaged: its record data/0 differs from its checksum; copy it again"


@pytest.fixture
def saved(tmp_path):
    torch.save({"a": torch.arange(1, 17.0)}, tmp_path / "x.pth")
    return tmp_path / "x.pth"


def test_no_flipped_bit_of_a_record_in_the_directory_gives_other_weights(saved):
    """PyTorch gives memory as it is for a record that is marked as a folder, or has no compressed bytes."""
    content = saved.read_bytes()
    end = content.rindex(b"data/0")
    directory = content.rindex(b"PK\1\2", 0, end)
    outcomes = Counter()
    for place in range(directory, end):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            saved.write_bytes(changed)
            try:
                assert read_content(saved)["a"].tolist() == list(range(1, 17)), (place - directory, bit)
            except CheckpointError as error:
                outcomes["no content"] += "has no content; copy it again" in str(error)
                outcomes["refused"] += 1
    assert outcomes["no content"] > 0 and outcomes["refused"] > 100


@pytest.mark.parametrize("change", [{"external_attr": DOS_FOLDER}, {"compress_size": 0}])
def test_a_record_that_pytorch_would_not_read_is_refused_without_checksums_too(saved, monkeypatch, change):
    real = zipfile.ZipFile.infolist

    def changed(archive):
        records = real(archive)
        for record in records:
            record.CRC = 0
            if record.filename.endswith("data/0"):
                for name, value in change.items():
                    setattr(record, name, value)
        return records

    monkeypatch.setattr(zipfile.ZipFile, "infolist", changed)
    with pytest.raises(CheckpointError) as caught:
        read_content(saved)
    assert str(caught.value) == f"{saved}: is damaged: its record data/0 has no content; copy it again"


def test_a_whole_network_in_an_older_file_is_named(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointError, match=r"was not executed: it asks for torch\.nn\.modules\.linear\.Linear; save it"
    ):
        read_content(tmp_path / "x.pth")


def test_tensors_under_many_names_and_small_expanded_ones_are_read(tmp_path):
    block = torch.rand(10**6)
    content = {f"step{index}.weight": block for index in range(40)}
    content |= {"mask": torch.ones(1, 1).expand(2048, 2048), "places": {(row, 2): 1.5 for row in range(1_500)}}
    torch.save(content, tmp_path / "x.pth")
    read = read_content(tmp_path / "x.pth")
    assert read["step39.weight"].equal(block)
    assert read["mask"].shape == (2048, 2048)
    assert len(read["places"]) == 1_500


def test_tensors_under_names_without_number_are_refused(tmp_path):
    block = torch.rand(4 * 10**6)
    torch.save({f"step{index}.weight": block for index in range(80)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"unfolds to more than [\d,]+ of them, or 1,0\d\d,[\d,]+ bytes"):
        read_content(tmp_path / "x.pth")
