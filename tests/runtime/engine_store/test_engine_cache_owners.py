"""The engine cache is ours alone: owners, modes, links, pipes, and the folders above."""

import os
from pathlib import Path

import pytest
from engine_files import KEY, opened

from runtime.engine_store.engine_cache import EngineCache
from runtime.errors import DeviceError

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="the system has no owners")


@pytest.fixture
def give(monkeypatch):
    """Make a path seem to belong to a user; only the last one given does."""
    real = Path.lstat

    def to(path, owner):
        def lstat(self):
            fields = list(real(self))
            fields[4] = owner if self == path else fields[4]
            return os.stat_result(fields)

        monkeypatch.setattr(Path, "lstat", lstat)

    return to


@posix
@pytest.mark.parametrize(
    ("part", "mode", "expected"),
    [
        ("", 0o755, "700"),
        (KEY, 0o770, "700"),
        (f"{KEY}/unet.engine", 0o622, "600"),
        (f"{KEY}/manifest.json", 0o660, "600"),
    ],
)
def test_what_others_may_write_is_refused_with_advice(ready, notes, part, mode, expected):
    path = ready.folder / part
    path.chmod(mode)
    with pytest.raises(DeviceError) as caught:
        opened(ready, notes)
    assert str(caught.value) == (
        f"{path}: has mode {mode:o}, expected {expected}, since engines are executable code; "
        f"if nobody else wrote there: chmod {expected} {path}"
    )


@posix
@pytest.mark.parametrize("part", ["", KEY, f"{KEY}/unet.engine"])
def test_what_belongs_to_another_user_is_refused(ready, notes, give, part):
    path, us = ready.folder / part, os.getuid()
    give(path, us + 1)
    with pytest.raises(DeviceError) as caught:
        opened(ready, notes)
    assert str(caught.value).startswith(f"{path}: belongs to user {us + 1}, expected {us or 'root'}, since engines are")


@posix
@pytest.mark.parametrize("part", ["", KEY, f"{KEY}/unet.engine"])
def test_links_are_refused(ready, notes, tmp_path, part):
    path = ready.folder / part
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError, match=f"{path}: is a link, expected the engine cache's own; remove it"):
        opened(ready, notes)


@posix
def test_folder_below_one_that_everybody_may_write_is_refused(tmp_path, notes):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(DeviceError, match=r"open: may be written by everybody, and engines below it are executable"):
        opened(EngineCache(tmp_path / "open" / "engines"), notes)
    (tmp_path / "open").chmod(0o1777)
    assert opened(EngineCache(tmp_path / "open" / "engines"), notes)[0] == b"new"


@posix
@pytest.mark.parametrize("name", ["unet.engine", "manifest.json"])
def test_pipe_is_refused_and_not_waited_for(ready, notes, name):
    path = ready.folder / KEY / name
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(DeviceError) as caught:
        opened(ready, notes)
    assert str(caught.value) == f"{path}: is not a regular file, expected one; remove it"


@posix
def test_folder_is_judged_where_it_is_not_by_the_link_that_leads_there(tmp_path, notes):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "open" / "inner")
    cache = EngineCache(tmp_path / "link" / "engines")
    assert cache.folder == tmp_path.resolve() / "open" / "inner" / "engines"
    with pytest.raises(DeviceError, match=rf"^{cache.folder.parents[1]}: may be written by everybody"):
        opened(cache, notes)


@posix
def test_folder_above_that_becomes_a_link_is_refused(tmp_path, notes):
    cache = EngineCache(tmp_path / "above" / "engines")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "above").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError, match=r"above: has become a link, expected a folder; try again$"):
        opened(cache, notes)


@posix
def test_folder_above_must_be_ours_or_roots(tmp_path, notes, give):
    above, us = tmp_path.resolve() / "above", os.getuid()
    above.mkdir(mode=0o755)
    give(above, 0)
    assert opened(EngineCache(above / "engines"), notes)[0] == b"new"
    give(above, us + 1)
    with pytest.raises(DeviceError) as caught:
        opened(EngineCache(above / "engines"), notes)
    ours = f"{us} or root" if us else "root"
    assert str(caught.value) == (
        f"{above}: belongs to user {us + 1}, expected {ours}, since engines below it are executable code; "
        "give ProviderOptions(engine_folder=...)"
    )


def test_folder_that_cannot_be_made_is_told_with_the_options(tmp_path, notes):
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError) as caught:
        opened(EngineCache(tmp_path / "file" / "engines"), notes)
    assert str(caught.value) == (
        f"{tmp_path / 'file' / 'engines'}: cannot keep engines here (file exists); give "
        "ProviderOptions(engine_folder=...), or engine_cache=False to build one at every start"
    )
