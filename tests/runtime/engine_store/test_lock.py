"""The lock of an engine; processes that wait for it and die with it are in test_engine_cache.py."""

import os

import pytest

from runtime.engine_store import lock
from runtime.errors import DeviceError


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


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="the system has no owners")
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("pipe", "is not a regular file, expected one; remove it"),
        ("link", "is a link, expected the engine cache's own; remove it"),
        ("open to all", "has mode 666, expected 600, since engines are executable code; if nobody else wrote there: "),
    ],
)
def test_lock_that_is_not_a_file_of_ours_is_refused(tmp_path, kind, expected):
    path = tmp_path / "lock"
    if kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.touch()
        path.chmod(0o666)
    with pytest.raises(DeviceError) as caught, lock.locked(path, None):
        pytest.fail("it is held")
    assert str(caught.value).startswith(f"{path}: {expected}")
    assert not (tmp_path / "elsewhere").exists()
