"""The engine cache: found by content, whole or not there, whatever other processes do or die of."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from engine_files import KEY, OTHER, Builder, names, opened

from runtime.engine_store.engine_cache import DamagedError, EngineCache, WrongError, user_cache


def raising(error):
    def load(folder, building):
        raise error

    return load


def test_folder_follows_the_system(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    for system, given, expected in [
        ("linux", "/x/cache", Path("/x/cache/unet-deploy")),
        ("linux", "relative", tmp_path / ".cache" / "unet-deploy"),
        ("linux", "", tmp_path / ".cache" / "unet-deploy"),
        ("darwin", "", tmp_path / "Library" / "Caches" / "unet-deploy"),
        ("win32", "", tmp_path / "local" / "unet-deploy" / "unet-deploy" / "Cache"),
    ]:
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert user_cache() == expected


def test_a_user_without_a_name_and_a_home_has_a_cache_folder(monkeypatch):
    """As `docker run --user 12345` makes of a program; Python raises RuntimeError."""
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == Path("/.cache/unet-deploy")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert user_cache() == Path("/cache/unet-deploy")


def test_default_folder_is_in_the_users_cache():
    assert EngineCache().folder == Path(os.environ["XDG_CACHE_HOME"]) / "unet-deploy" / "engines"


# Building and loading


def test_engine_is_built_once_and_loaded_after(cache, notes):
    builder = Builder()
    assert KEY not in cache
    assert [cache.open(KEY, {}, builder, notes.append) for _ in range(3)] == [b"engine"] * 3
    assert builder.calls == [True, False, False]
    assert KEY in cache and OTHER not in cache
    assert notes == []
    assert names(cache.folder / KEY) == ["manifest.json", "unet.engine", "unet.profile"]


def test_an_engine_that_finds_no_room_is_kept(cache, notes):
    def no_room(folder, building):
        Builder()(folder, building)
        raise MemoryError("no room")

    for sound, calls in ((False, [True]), (True, [False])):
        with pytest.raises(MemoryError, match=r"^no room$"):
            cache.open(KEY, {}, no_room, notes.append, sound=lambda error, sound=sound: sound and "room" in str(error))
        builder = Builder()
        assert cache.open(KEY if sound else OTHER, {}, builder, notes.append) == b"engine"
        assert builder.calls == calls
    assert notes == []


def test_an_engine_that_was_wrong_when_it_was_new_is_not_built_again(cache, notes):
    wrong, builder = True, Builder()

    def load(folder, building):
        content = builder(folder, building)
        if wrong:
            raise WrongError("answers wrongly")
        return content

    for _ in range(2):
        with pytest.raises(WrongError, match=r"^answers wrongly$"):
            cache.open(KEY, {}, load, notes.append)
    wrong = False
    assert [cache.open(key, {}, load, notes.append) for key in (KEY, OTHER)] == [b"engine"] * 2
    assert builder.calls == [True, False, False, True]
    assert notes == []
    wrong = True
    with pytest.raises(WrongError):
        cache.open(OTHER, {}, load, notes.append)
    assert builder.calls[4:] == [False, True]
    assert notes == [f"engine {OTHER[:12]}: answers wrongly; it is built anew"]


def test_measured_kernels_that_are_not_taken_are_measured_anew(cache, notes):
    cache.open(OTHER, {}, Builder(timing=b"nonsense"), notes.append, timing="f00d")
    taken = Builder(timing=b"new")

    def choosy(folder, building):
        if any(path.read_bytes() == b"nonsense" for path in folder.glob("*.timing")):
            raise DamagedError("is not taken")
        return taken(folder, building)

    assert cache.open(KEY, {}, choosy, notes.append, timing="f00d") == b"engine"
    assert taken.calls == [True]
    assert notes == [f"measured kernels of engine {KEY[:12]}: is not taken; they are measured anew"]
    assert (cache.folder / "timing-f00d" / "sm90.timing").read_bytes() == b"new"
    (cache.folder / "timing-f00d" / "sm90.timing").unlink()
    with pytest.raises(DamagedError, match=r"^for another reason$"):
        cache.open("c" * 64, {}, raising(DamagedError("for another reason")), notes.append, timing="f00d")


def test_another_key_is_another_engine(ready, notes):
    assert opened(ready, notes, OTHER) == (b"new", [True])
    assert opened(ready, notes) == (b"engine", [False])


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="the system has no modes")
def test_nobody_else_may_look(ready):
    old = os.umask(0)
    try:
        ready.open(OTHER, {}, Builder(timing=b"t"), print, timing="f00d")
    finally:
        os.umask(old)
    for folder in (ready.folder, ready.folder / KEY, ready.folder / OTHER, ready.folder / "timing-f00d"):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda entry: (entry / "unet.engine").write_bytes(b"Engine"), "unet.engine does not have its hash"),
        (lambda entry: (entry / "unet.engine").write_bytes(b""), "unet.engine does not have its hash"),
        (lambda entry: (entry / "unet.profile").unlink(), "has other files than its manifest says (unet.profile)"),
        (lambda entry: (entry / "a").touch(0o600), "has other files than its manifest says (a)"),
        (lambda entry: (entry / "manifest.json").unlink(), "has no manifest that can be read"),
        (lambda entry: (entry / "manifest.json").write_text("{"), "has no manifest that can be read"),
        (lambda entry: (entry / "manifest.json").write_text("[" * 100_000), "has no manifest that can be read"),
        (lambda entry: (entry / "manifest.json").write_text("{}"), "has no manifest that can be read"),
        (lambda entry: (entry / "manifest.json").write_bytes(bytes(2**20 + 1)), "its manifest is too large"),
    ],
)
def test_damaged_engine_is_built_anew_once(ready, notes, damage, why):
    damage(ready.folder / KEY)
    assert opened(ready, notes) == (b"new", [True])
    assert notes == [f"engine {KEY[:12]}: {why}; it is built anew"]
    assert opened(ready, notes) == (b"new", [False])


def test_engine_of_another_key_is_not_taken(ready, notes):
    shutil.copytree(ready.folder / KEY, ready.folder / OTHER)
    assert opened(ready, notes, OTHER) == (b"new", [True])
    assert notes == [f"engine {OTHER[:12]}: has another engine's manifest; it is built anew"]


def test_engine_that_is_refused_is_built_anew_once_and_then_the_error_is_told(ready, notes):
    calls = []

    def refuse(folder, building):
        calls.append(building)
        raise DamagedError("answers wrongly")

    with pytest.raises(DamagedError, match=r"^answers wrongly$"):
        ready.open(KEY, {}, refuse, notes.append)
    assert calls == [False, True]
    assert notes == [f"engine {KEY[:12]}: answers wrongly; it is built anew"]
    assert names(ready.folder) == [KEY, f"{KEY}.lock"]
    assert opened(ready, notes) == (b"engine", [False])  # it may have been the GPU's fault


def test_error_that_is_not_the_engines_fault_is_told_and_costs_no_build(ready, notes):
    def fail(folder, building):
        assert not building
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        ready.open(KEY, {}, fail, notes.append)
    assert notes == []
    assert opened(ready, notes) == (b"engine", [False])


def test_engine_that_onnx_runtime_rebuilds_in_its_folder_is_not_kept_as_it_was(ready, notes):
    def rebuild(folder, building):
        (folder / "unet.engine").write_bytes(b"another")
        return building

    assert ready.open(KEY, {}, rebuild, notes.append) is True
    assert "TensorRT found it stale" in notes[0]
    assert opened(ready, notes) == (b"another", [False])


def test_build_that_fails_leaves_nothing(cache, notes):
    def fail(folder, building):
        (folder / "unet.engine").write_bytes(b"half")
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        cache.open(KEY, {}, fail, notes.append)
    assert names(cache.folder) == [f"{KEY}.lock"]
    assert opened(cache, notes) == (b"new", [True])


def test_session_works_where_its_engine_cannot_be_kept(cache, notes, monkeypatch):
    assert cache.open(KEY, {}, lambda folder, building: 7, notes.append) == 7
    assert notes == [f"engine {KEY[:12]}: is not kept for the next start (ONNX Runtime wrote no engine)"]

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert opened(cache, notes)[0] == b"new"
    assert "is not kept for the next start ([Errno 28] No space left on device)" in notes[1]
    assert names(cache.folder) == [f"{KEY}.lock"]


def test_measured_kernels_serve_the_next_build(cache, notes):
    seen = []

    def build(folder, building):
        seen.append([path.read_bytes() for path in folder.glob("*.timing")])
        return Builder(timing=b"kernels")(folder, building)

    cache.open(KEY, {}, build, notes.append, timing="f00d")
    cache.open(OTHER, {}, build, notes.append, timing="f00d")
    cache.open("c" * 64, {}, build, notes.append, timing="beef")
    cache.open("d" * 64, {}, build, notes.append)
    assert seen == [[], [b"kernels"], [], []]
    assert all("sm90.timing" not in names(entry.path) for entry in cache.entries())
    assert opened(cache, notes, OTHER)[1] == [False]
    assert notes == []


# Several at once


def test_threads_build_one_engine(cache):
    builder, answers = Builder(), []

    def slow(folder, building):
        if building:
            time.sleep(0.1)
        return builder(folder, building)

    threads = [
        threading.Thread(target=lambda: answers.append(cache.open(KEY, {}, slow, lambda note: None))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"engine"] * 6
    assert sorted(builder.calls) == [False] * 5 + [True]


PROGRAM = """
import os, sys, time
from pathlib import Path
from runtime.engine_store.engine_cache import EngineCache

def load(folder, building):
    print("building" if building else "loading", flush=True)
    if building:
        (folder / "unet.engine").write_bytes(b"x" * 1000)
        time.sleep(float(sys.argv[2]))
        (folder / "unet.profile").write_bytes(str(os.getpid()).encode())
    return (folder / "unet.profile").read_text()

print(EngineCache(sys.argv[1]).open("a" * 64, {}, load, lambda note: print(note, flush=True)), flush=True)
"""


def start(root, folder, seconds):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, folder, str(seconds)], cwd=root, stdout=-1, text=True)


def test_processes_at_once_build_one_engine(root, cache):
    processes = [start(root, cache.folder, 0.5) for _ in range(4)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert sorted(lines[-2] for lines in said) == ["building", "loading", "loading", "loading"]
    assert len({lines[-1] for lines in said}) == 1
    assert names(cache.folder) == [KEY, f"{KEY}.lock"]


def test_process_that_is_killed_half_way_is_in_nobodys_way(root, cache, notes):
    victim = start(root, cache.folder, 60)
    assert victim.stdout.readline() == "building\n"
    follower = start(root, cache.folder, 0)
    assert follower.stdout.readline() == f"engine {KEY[:12]}: waiting for another process that builds or loads it\n"
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=60)
    said = follower.communicate(timeout=60)[0].splitlines()
    assert said == ["building", str(follower.pid)]
    assert names(cache.folder) == [KEY, f"{KEY}.lock"]
