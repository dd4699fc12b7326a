"""Locks: what may be opened as one."""

import os

import pytest

from runtime.errors import OutputError
from runtime.support.locks import require_regular, try_lock


def test_a_lock_is_held_once(tmp_path):
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert (try_lock(first), try_lock(second)) == (True, False)
    os.close(first)
    assert try_lock(second)
    os.close(second)


def test_a_lock_is_a_regular_file_or_nothing(tmp_path):
    path = tmp_path / "lock"
    assert require_regular(path) == path
    path.touch()
    assert require_regular(path) == path
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, found in {"link": "a link", "folder": "not a regular file", "pipe": "not a regular file"}.items():
        with pytest.raises(OutputError) as caught:
            require_regular(tmp_path / name)
        expected = f"{tmp_path / name}: is {found}, expected a regular file or nothing; remove it"
        assert str(caught.value) == expected
