"""Engines are listed with size and last use, and the longest unused are pruned."""

import os
import time

import pytest
from engine_files import KEY, OTHER, Builder, names, opened

from runtime.engine_store import lock
from runtime.engine_store.engine_cache import EngineCache


@pytest.fixture
def three(cache, notes):
    """Engines of 1, 2 and 3 kB, last used 30, 20 and 10 days ago."""
    for index, key in enumerate([KEY, OTHER, "c" * 64], start=1):
        cache.open(key, {"model": f"m{index}"}, Builder(bytes(1000 * index)), notes.append)
        used = time.time() - (40 - 10 * index) * 86_400
        os.utime(cache.folder / key / "manifest.json", (used, used))
    return cache


def test_engines_are_listed_with_size_and_last_use(three):
    found = three.entries()
    assert [entry.about["model"] for entry in found] == ["m1", "m2", "m3"]
    for index, entry in enumerate(found, start=1):
        files = sum(path.stat().st_size for path in entry.path.iterdir())
        assert 1000 * index < entry.bytes == files < 1000 * index + 1000
        assert entry.used == pytest.approx(time.time() - (40 - 10 * index) * 86_400, abs=60)
        assert entry.created == pytest.approx(time.time(), abs=60)


def test_use_is_noticed(three, notes):
    opened(three, notes, KEY)
    assert [entry.about["model"] for entry in three.entries()] == ["m2", "m3", "m1"]


@pytest.mark.parametrize(
    ("limits", "removed"),
    [
        ({}, []),
        ({"unused_days": 25}, ["m1"]),
        ({"unused_days": 5}, ["m1", "m2", "m3"]),
        ({"max_bytes": 10**6}, []),
        ({"max_bytes": 4500}, ["m1", "m2"]),
        ({"max_bytes": 0}, ["m1", "m2", "m3"]),
        ({"unused_days": 15, "max_bytes": 10**6}, ["m1", "m2"]),
    ],
)
def test_prune_takes_the_longest_unused(three, limits, removed):
    assert [entry.about["model"] for entry in three.prune(**limits)] == removed
    assert [entry.about["model"] for entry in three.entries()] == [m for m in ["m1", "m2", "m3"] if m not in removed]
    assert len(names(three.folder)) == 2 * (3 - len(removed))


def test_prune_leaves_what_is_in_use_and_takes_what_was_left_half_done(three):
    (three.folder / f".{KEY}.beef").mkdir()
    (three.folder / f".{OTHER}.beef").mkdir()
    with lock.locked(three.folder / f"{KEY}.lock", None):
        assert [entry.about["model"] for entry in three.prune(max_bytes=0)] == ["m2", "m3"]
        assert names(three.folder) == [f".{KEY}.beef", KEY, f"{KEY}.lock"]
    assert [entry.about["model"] for entry in three.prune(max_bytes=0)] == ["m1"]
    assert names(three.folder) == []


def test_nothing_to_prune(tmp_path):
    assert EngineCache(tmp_path / "none").prune(max_bytes=0) == []
    assert not (tmp_path / "none").exists()
