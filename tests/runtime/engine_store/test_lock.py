"""The lock of an engine; processes that wait for it and die with it are in test_engine_cache.py."""

import os

from runtime.engine_store import lock


def test_lock_that_prune_removes_before_it_is_held_is_not_held(tmp_path, monkeypatch):
    path, real = tmp_path / "lock", lock.try_lock

    def late(descriptor):
        path.unlink()
        return real(descriptor)

    monkeypatch.setattr(lock, "try_lock", late)
    assert lock.held(path) is None
    monkeypatch.setattr(lock, "try_lock", real)
    descriptor = lock.held(path)
    assert descriptor is not None
    assert lock.held(path) is None
    os.close(descriptor)
