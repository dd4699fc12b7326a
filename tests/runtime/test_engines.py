"""The engine cache: found by content, ours alone, whole or not there, whatever other processes do or die of."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runtime import engines
from runtime.engines import DamagedError, EngineCache, engine_key, timing_key, user_cache
from runtime.errors import DeviceError

KEY, OTHER = "a" * 64, "b" * 64
FACTS = {"gpu": "Some GPU", "driver": "580.1", "tensorrt": "101300"}


class Builder:
    """Stands in for ONNX Runtime: writes an engine when it builds, reads it when it loads."""

    def __init__(self, content=b"engine", timing=None):
        self.content, self.timing = content, timing
        self.calls = []

    def __call__(self, folder, building):
        self.calls.append(building)
        if building:
            (folder / "unet.engine").write_bytes(self.content)
            (folder / "unet.profile").write_bytes(b"profile")
            if self.timing is not None:
                (folder / "sm90.timing").write_bytes(self.timing)
        return (folder / "unet.engine").read_bytes()


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def notes():
    return []


@pytest.fixture
def ready(cache, notes):
    """A cache with one engine."""
    assert cache.open(KEY, {"model": "m.onnx"}, Builder(), notes.append) == b"engine"
    assert notes == []
    return cache


def opened(cache, notes, key=KEY, builder=None, **named):
    builder = builder or Builder(b"new")
    return cache.open(key, {}, builder, notes.append, **named), builder.calls


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Keys


def test_key_changes_with_everything_that_makes_an_engine(tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"weights")
    options = {"trt_fp16_enable": "0", "device_id": "0"}
    key = engine_key(model, FACTS, options)
    assert len(key) == 64 and set(key) <= set("0123456789abcdef")
    assert engine_key(model, dict(reversed(FACTS.items())), options | {"device_id": "3"}) == key
    assert timing_key(FACTS) == timing_key(dict(reversed(FACTS.items())))
    others = {engine_key(model, FACTS | {name: "x"}, options) for name in FACTS}
    others.add(engine_key(model, FACTS, options | {"trt_fp16_enable": "1"}))
    model.write_bytes(b"weightz")
    others.add(engine_key(model, FACTS, options))
    assert len(others - {key}) == 5


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


# Whose it is


posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="the system has no owners")


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
def test_what_belongs_to_another_user_is_refused(ready, notes, monkeypatch, part):
    path, real, us = ready.folder / part, Path.lstat, os.getuid()

    def lstat(self):
        status = real(self)
        fields = list(status)
        fields[4] = us + 1 if self == path else us
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises(DeviceError) as caught:
        opened(ready, notes)
    assert str(caught.value).startswith(f"{path}: belongs to user {us + 1}, expected {us}, since engines are")


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
def test_folder_above_must_be_ours_or_roots(tmp_path, notes, monkeypatch):
    above, real = tmp_path.resolve() / "above", Path.lstat
    above.mkdir(mode=0o755)

    def belongs_to(owner):
        def lstat(self):
            fields = list(real(self))
            fields[4] = owner if self == above else fields[4]
            return os.stat_result(fields)

        monkeypatch.setattr(Path, "lstat", lstat)

    us = os.getuid()
    belongs_to(0)
    assert opened(EngineCache(above / "engines"), notes)[0] == b"new"
    belongs_to(us + 1)
    with pytest.raises(DeviceError) as caught:
        opened(EngineCache(above / "engines"), notes)
    assert str(caught.value) == (
        f"{above}: belongs to user {us + 1}, expected {us} or root, since engines below it are executable code; "
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


# Listing and pruning


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
    with engines._locked(three.folder / f"{KEY}.lock", None):
        assert [entry.about["model"] for entry in three.prune(max_bytes=0)] == ["m2", "m3"]
        assert names(three.folder) == [f".{KEY}.beef", KEY, f"{KEY}.lock"]
    assert [entry.about["model"] for entry in three.prune(max_bytes=0)] == ["m1"]
    assert names(three.folder) == []


def test_nothing_to_prune(tmp_path):
    assert EngineCache(tmp_path / "none").prune(max_bytes=0) == []
    assert not (tmp_path / "none").exists()


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
from runtime.engines import EngineCache

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


def test_lock_that_prune_removes_before_it_is_held_is_not_held(tmp_path, monkeypatch):
    path, real = tmp_path / "lock", engines._try_lock

    def late(descriptor):
        path.unlink()
        return real(descriptor)

    monkeypatch.setattr(engines, "_try_lock", late)
    assert engines._held(path) is None
    monkeypatch.setattr(engines, "_try_lock", real)
    descriptor = engines._held(path)
    assert descriptor is not None
    assert engines._held(path) is None
    os.close(descriptor)
