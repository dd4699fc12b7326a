"""The cache's limit, full disks, and folders that cannot be used: what is kept, and what is said."""

import os
import resource
from contextlib import contextmanager

import pytest
from caching import RECORD, STRETCH, assert_exact, decoder, kept, nothing, said_by, size_of
from filelock import FileLock

import unet_core.data.cache
import unet_core.data.records
from unet_core.data.cache import DATA, INDEX, LOCK, Cache, check_and_cache, open_cache, pending
from unet_core.data.records import Records


@contextmanager
def files_no_larger_than(size):
    """Limit the size of files, as a full disk does, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_noted_and_what_is_whole_is_kept(pairs, cache, decoding, monkeypatch):
    monkeypatch.setattr(unet_core.data.cache, "available_threads", lambda: 1)
    monkeypatch.setattr(unet_core.data.cache, "AHEAD", 1)
    reason = f"--cache-dir {cache.folder}: cannot be used (file too large); choose another one, or --cache-gb 0"
    with files_no_larger_than(int(2.6 * RECORD)):
        for decoded in (5, 1):  # what was looked at before is only tried to be kept until that fails
            records = Records(pairs, STRETCH)
            decoding.since()
            assert said_by((records,), cache) == [f"only 2 of 5 decoded images are kept: {reason}"]
            assert (decoding.since(), records.stored) == (decoded, 2)
            assert (records.folder / DATA).stat().st_size == 2 * RECORD
            assert_exact(records)
    later = Records(pairs, STRETCH)
    decoding.since()
    assert pending((later,), cache) == 3
    assert said_by((later,), cache) == []
    assert (decoding.since(), later.stored) == (3, 5)
    assert_exact(later)


def test_an_index_that_cannot_be_written_is_noted_and_nothing_is_believed(pairs, cache):
    records = Records(pairs, decoder(size=(2, 2)))
    with files_no_larger_than(100):
        assert said_by((records,), cache) == [
            f"only 0 of 5 decoded images are kept: --cache-dir {cache.folder}: cannot be used (file too large); choose "
            "another one, or --cache-gb 0"
        ]
    assert_exact(records)
    assert pending((Records(pairs, records.decoder),), cache) == 5


def room_for(count, rows=5):
    """A limit that just so many records of `STRETCH` fit into, beside their index and the next one."""
    return count * RECORD + 2 * (rows * unet_core.data.records.ROW.itemsize + 700)


def test_records_are_stored_up_to_the_limit_and_a_second_start_leaves_it_at_that(pairs, tmp_path, decoding):
    cache = Cache(folder=tmp_path / "kept", limit=room_for(3))
    records = Records(pairs, STRETCH)
    sizes = []
    notes = said_by((records,), cache, lambda _: sizes.append(size_of(cache.folder)))
    assert notes == [f"only 3 of 5 decoded images are kept: --cache-gb {room_for(3) / 1e9:g}: is full; give more"]
    assert (decoding.since(), records.stored) == (5, 3)
    assert max(*sizes, size_of(cache.folder)) <= cache.limit
    assert_exact(records)
    decoding.since()
    second = Records(pairs, STRETCH)
    assert pending((second,), cache) == 0
    assert said_by((second,), cache) == []
    assert (decoding.since(), second.stored, size_of(cache.folder) <= cache.limit) == (0, 3, True)
    assert second.has_foreground
    more = Cache(folder=cache.folder, limit=room_for(4))
    for limit, left in ((more, 1), (Cache(folder=cache.folder, limit=10**6), 1)):
        raised = Records(pairs, STRETCH)
        assert pending((raised,), limit) == left
        assert said_by((raised,), limit) == []
        assert decoding.since() == left
    assert raised.stored == 5
    assert_exact(raised)


def test_one_that_is_kept_is_told_as_one(pairs, tmp_path):
    cache = Cache(folder=tmp_path / "kept", limit=room_for(1))
    assert said_by((Records(pairs, STRETCH),), cache)[0].startswith("only 1 of 5 decoded images is kept: ")


def test_sets_that_are_prepared_together_do_not_drive_each_other_out(pairs, tmp_path, decoding):
    cache = Cache(folder=tmp_path / "kept", limit=room_for(7, rows=10))
    for expected in (10, 0):
        sets = Records(pairs, STRETCH), Records(pairs[::-1], STRETCH)
        assert pending(sets, cache) == expected
        notes = said_by(sets, cache)
        assert (decoding.since(), [records.stored for records in sets]) == (expected, [5, 2])
        assert len(notes) == (expected > 0)
    for records in sets:
        assert_exact(records)


def test_room_that_another_process_takes_meanwhile_is_respected(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(unet_core.data.cache, "SAVE_SECONDS", 0)
    cache = Cache(folder=tmp_path / "kept", limit=room_for(5))
    other = cache.folder / f"records-{'f' * 32}"
    other.mkdir(parents=True)

    def advance(_):
        with open(other / DATA, "ab") as file:
            file.write(bytes(RECORD))

    records = Records(pairs, STRETCH)
    with FileLock(other / LOCK):
        assert len(said_by((records,), cache, advance)) == 1
    assert records.stored == 2


def test_the_longest_unused_make_room(pairs, tmp_path):
    cache = Cache(folder=tmp_path / "kept", limit=10**6)
    old = [kept(pairs[:3], cache), kept(pairs[:4], cache), kept(pairs[1:4], cache), kept(pairs[2:], cache)]
    for age, records in zip((5, 1, 9, 7), old, strict=True):
        os.utime(records.folder / INDEX, (1e9 - age, 1e9 - age))
    unfinished = cache.folder / f"records-{'0' * 32}"
    unfinished.mkdir()
    (unfinished / DATA).write_bytes(bytes(100))
    (cache.folder / "photos").mkdir()
    (cache.folder / "photos" / "mine.jpg").write_bytes(bytes(10**6))
    (cache.folder / "records-of-mine").mkdir()
    (cache.folder / "records-of-mine" / INDEX).write_bytes(bytes(10))
    os.utime(cache.folder / "records-of-mine" / INDEX, (1, 1))
    limited = Cache(folder=cache.folder, limit=size_of(cache.folder) - 10**6)
    with FileLock(old[2].folder / LOCK):
        assert kept(pairs, limited).stored == 5
    assert [records.folder.exists() for records in old] == [False, True, True, False]
    assert not unfinished.exists()
    assert (cache.folder / "photos" / "mine.jpg").exists()
    assert (cache.folder / "records-of-mine" / INDEX).exists()


def test_a_lower_limit_is_kept_also_where_nothing_is_left_to_do(pairs, cache):
    other, own = kept(pairs[1:], cache), kept(pairs, cache)
    again = Records(pairs, STRETCH)
    lower = Cache(folder=cache.folder, limit=size_of(own.folder) + 10)
    assert pending((again,), lower) == 0
    check_and_cache((again,), lower, nothing, nothing)
    assert (other.folder.exists(), own.folder.exists()) == (False, True)


def test_no_gigabytes_are_no_cache():
    assert open_cache("", 0.0) is None


def test_the_folder_is_the_users_or_the_given_one_and_is_made_when_it_is_needed(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(unet_core.data.cache, "user_cache_path", lambda name: tmp_path / name)
    assert open_cache("", 1.0).folder == tmp_path / "unet-deploy" / "decoded"
    cache = open_cache(str(tmp_path / "a" / "b"), 1.5)
    assert cache == Cache(folder=tmp_path / "a" / "b", limit=1_500_000_000) and not cache.folder.exists()
    assert kept(pairs, cache).folder.parent == cache.folder


@pytest.mark.parametrize(
    ("name", "why"), [("file", "file exists"), ("file/kept", "not a directory"), ("x" * 300, "file name too long")]
)
def test_a_folder_that_cannot_be_made_is_noted_once_and_done_without(pairs, tmp_path, name, why):
    (tmp_path / "file").write_text("")
    cache = open_cache(str(tmp_path / name), 1.0)
    sets = Records(pairs, STRETCH), Records(pairs[:2], STRETCH)
    assert pending(sets, cache) == 7
    assert said_by(sets, cache) == [
        f"decoded images are not kept: --cache-dir {cache.folder}: cannot be used ({why}); choose another one, or "
        "--cache-gb 0"
    ]
    for records in sets:
        assert records.stored == 0
        assert_exact(records)


def test_a_cache_that_may_only_be_read_is_read(pairs, cache, decoding, monkeypatch):
    kept(pairs, cache)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    for name in ("utime", "fsync"):
        monkeypatch.setattr(unet_core.data.cache.os, name, refused)
    monkeypatch.setattr(unet_core.data.cache, "FileLock", refused)
    decoding.since()
    assert kept(pairs, cache).stored == 5
    assert decoding.since() == 0
    records = Records(pairs[1:], STRETCH)
    assert said_by((records,), cache) == [
        f"decoded images are not kept: --cache-dir {cache.folder}: cannot be used (permission denied); choose another "
        "one, or --cache-gb 0"
    ]
    assert_exact(records)
