"""Whose records are trained on: ours and root's, and no links, pipes or labels that no mask can have."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from caching import RECORD, SIZE, STRETCH, assert_exact, kept, said_by

from unet_core.data.cache import DATA, INDEX, LOCK, Cache, check_and_cache, pending
from unet_core.data.labels import LabelSpec
from unet_core.data.records import NOT_STORED, Records, read_index, write_index

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="the system has no owners")
PIXELS = SIZE[0] * SIZE[1]


@pytest.fixture
def give(monkeypatch):
    """Make files seem to belong to another user, by path and when they are open."""
    owners, lstat, fstat = {}, Path.lstat, os.fstat

    def owned(status):
        fields = list(status)
        fields[4] = owners.get(status.st_ino, status.st_uid)
        return os.stat_result(fields)

    def to(owner, *paths):
        owners.update({lstat(path).st_ino: owner for path in paths})

    monkeypatch.setattr(Path, "lstat", lambda self: owned(lstat(self)))
    monkeypatch.setattr(os, "fstat", lambda descriptor: owned(fstat(descriptor)))
    return to


def relabelled(folder, labels):
    """Put other labels into the first record, with the checksum that they have."""
    content = bytearray((folder / DATA).read_bytes())
    content[3 * PIXELS : RECORD] = labels
    (folder / DATA).write_bytes(content)
    rows = read_index(folder, 5)
    rows["checksum"][0] = zlib.crc32(content[:RECORD])
    write_index(folder, rows)


def inverted(folder):
    labels = np.frombuffer((folder / DATA).read_bytes()[3 * PIXELS : RECORD], np.uint8)
    relabelled(folder, (1 - labels).tobytes())


def test_link_in_place_of_records_where_files_have_no_owners(pairs, cache, monkeypatch):
    folder = kept(pairs, cache).folder
    decoder = Records(pairs, kept(pairs, cache).decoder).decoder
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))
    monkeypatch.delattr(os, "getuid", raising=False)
    assert cache.of(pairs, decoder) == folder.with_name(f"{folder.name}-0")


@posix
@pytest.mark.parametrize("part", ["", INDEX, DATA])
def test_records_of_another_user_are_not_trained_on(pairs, cache, decoding, give, part):
    folder, us = kept(pairs, cache).folder, os.getuid()
    ours = f"{us} or root" if us else "root"
    inverted(folder)
    give(us + 1, folder / part)
    records = Records(pairs, STRETCH)
    decoding.since()
    assert pending((records,), cache) == 5
    assert said_by((records,), cache) == [
        f"{folder / part}: belongs to user {us + 1}, expected {ours}, since records are trained on; choose "
        f"another --cache-dir, or remove it; decoding anew, into {folder.name}-{us}"
    ]
    assert (decoding.since(), records.stored, records.folder.name) == (5, 5, f"{folder.name}-{us}")
    assert_exact(records)
    again = Records(pairs, STRETCH)
    assert pending((again,), cache) == 0
    assert said_by((again,), cache) == []
    assert_exact(again)
    assert folder.exists()


@posix
@pytest.mark.parametrize(("part", "mode"), [("", 0o770), (INDEX, 0o620), (DATA, 0o666)])
def test_records_that_others_may_write_are_not_trained_on(pairs, cache, part, mode):
    folder = kept(pairs, cache).folder
    inverted(folder)
    (folder / part).chmod(mode)
    expected = 600 if part else 700
    records = Records(pairs, STRETCH)
    assert said_by((records,), cache) == [
        f"{folder / part}: has mode {mode:o}, expected {expected}, since records are trained on; if nobody else wrote "
        f"there: chmod {expected} {folder / part}; decoding anew, into {folder.name}-{os.getuid()}"
    ]
    assert_exact(records)


@posix
def test_records_are_ours_alone_whatever_the_mask_of_modes(pairs, cache):
    before = os.umask(0)
    try:
        folder = kept(pairs, cache).folder
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, folder / INDEX, folder / DATA)}
    assert modes == {folder.name: 0o700, INDEX: 0o600, DATA: 0o600}
    cache.folder.chmod(0o755)
    assert pending((Records(pairs, STRETCH),), cache) == 0


@posix
def test_records_that_root_made_for_all_are_read(pairs, cache, give, decoding, monkeypatch):
    folder = kept(pairs, cache).folder
    folder.chmod(0o755)
    for name in (INDEX, DATA):
        (folder / name).chmod(0o644)
    give(0, folder, folder / INDEX, folder / DATA)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    records = Records(pairs, STRETCH)
    decoding.since()
    monkeypatch.setattr(Cache, "check", lambda self: None)  # of the folders above, which the test's user owns
    assert said_by((records,), cache) == []
    assert (decoding.since(), records.stored) == (0, 5)


@posix
def test_others_records_do_not_make_room(pairs, cache, give):
    other = kept(pairs[1:], cache).folder
    give(os.getuid() + 1, other)
    assert Cache(folder=cache.folder, limit=100).make_room(()) == 100
    assert other.exists()


@posix
@pytest.mark.parametrize(("mode", "used"), [(0o777, False), (0o1777, True), (0o775, True)])
def test_a_folder_where_others_might_swap_ours_is_not_used(pairs, tmp_path, mode, used):
    above = tmp_path.resolve() / "open"
    cache = Cache(folder=above / "kept", limit=10**9)
    cache.folder.mkdir(parents=True)
    above.chmod(mode)
    records = Records(pairs, STRETCH)
    refusal = (
        f"decoded images are not kept: {above}: may be written by everybody, and records below it are trained on; "
        f"chmod o-w {above}, or choose another --cache-dir"
    )
    assert said_by((records,), cache) == [refusal] * (not used)
    assert records.stored == 5 * used
    assert_exact(records)


@posix
@pytest.mark.parametrize("name", [INDEX, DATA, LOCK])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_pipes_and_links_are_neither_waited_for_nor_followed(pairs, cache, tmp_path, name, kind):
    folder = kept(pairs, cache).folder
    (folder / name).unlink()
    (folder / INDEX).unlink(missing_ok=True)  # so that all are made anew
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (tmp_path / "elsewhere").write_bytes(b"kept")
        (folder / name).symlink_to(tmp_path / "elsewhere")
    records = Records(pairs, STRETCH)
    (note,) = said_by((records,), cache)
    found = "a link" if kind == "link" else "not a regular file"
    assert note.removeprefix("decoded images are not kept: ").startswith(f"{folder / name}: is {found}, expected ")
    assert_exact(records)
    if kind == "link":
        assert (tmp_path / "elsewhere").read_bytes() == b"kept"


@pytest.mark.parametrize("labels", [bytes([2]) * PIXELS, bytes(PIXELS - 1) + bytes([254])], ids=["all", "one"])
def test_labels_that_no_mask_can_have_are_decoded_anew(pairs, cache, labels):
    folder = kept(pairs, cache).folder
    relabelled(folder, labels)
    records = Records(pairs, STRETCH)
    assert pending((records,), cache) == 0
    assert_exact(records)
    assert records.rows["offset"][0] == NOT_STORED
    assert pending((Records(pairs, STRETCH),), cache) == 5


def test_labels_are_those_of_the_classes_or_ignored():
    values = np.array([[0, 1, 2], [255, 0, 255]], np.uint8)
    kinds = [LabelSpec(classes=("car",)), LabelSpec(classes=("a", "b")), LabelSpec(classes=("a", "b", "c"))]
    assert [spec.has_all(values) for spec in kinds] == [False, False, True]
    assert all(spec.has_all(np.minimum(values, 1)) for spec in kinds)
    assert all(spec.has_all(np.full((2, 2), 255, np.uint8)) for spec in kinds)


@pytest.mark.parametrize(
    ("side", "value"), [("height", 17), ("truth_width", 23), ("width", -24), ("truth_height", 0), ("offset", -3)]
)
def test_an_index_of_sizes_that_the_decoder_does_not_give_is_not_believed(pairs, cache, side, value):
    folder = kept(pairs, cache).folder
    rows = read_index(folder, 5)
    rows[side][2] = value
    write_index(folder, rows)
    records = Records(pairs, STRETCH)
    assert pending((records,), cache) == 5
    check_and_cache((records,), cache, lambda _: None, pytest.fail)
    assert_exact(records)


@pytest.mark.parametrize("seen", [False, True])
def test_a_file_that_is_cut_while_it_is_read_is_decoded_instead(pairs, cache, seen):
    records = kept(pairs, cache)
    if seen:
        assert_exact(records)
    os.truncate(records.folder / DATA, RECORD + 7)
    assert_exact(records)
    assert records.stored == 1
