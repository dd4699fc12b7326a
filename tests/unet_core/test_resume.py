"""Stopping anywhere and going on: by signals, kills, full disks, and within an epoch; always to the same weights."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from folders import write_pair
from forked import start_training

from runtime.errors import CheckpointError, ConfigError, DataError, OutputError
from unet_core.checkpoint import load_checkpoint
from unet_core.config import TrainConfig
from unet_core.train import train
from unet_core.training import trainer as running

LAST, BEST = "my_checkpoint.pth.tar", "model.pth"

PLAIN = {}
RICH = {
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "schedule": "cosine",
    "warmup_epochs": 0.5,
    "ema": 0.9,
    "clip_norm": 0.5,
    "accumulate": 2,
    "batch_size": 2,
    "augment": "strong",
    "loss": "bce+dice",
}
HALF = {"amp": "fp16", "optimizer": "sgd", "schedule": "plateau", "plateau_epochs": 1}
NATIVE = {"fit": "native", "height": 16, "width": 24, "optimizer": "rmsprop"}


def everything_in(folder, name=LAST):
    """All that a checkpoint holds but times."""
    checkpoint = load_checkpoint(Path(folder) / name)
    extra = dict(checkpoint.extra)
    extra.pop("config", None)
    extra.pop("seconds", None)
    for row in extra.get("history", []):
        del row["seconds"], row["train_seconds"]
    return {"weights": dict(checkpoint.state_dict), **extra}


def assert_equal(found, expected, where="checkpoint"):
    assert type(found) is type(expected), where
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(found, dict):
        assert found.keys() == expected.keys(), where
        for key in found:
            assert_equal(found[key], expected[key], f"{where}.{key}")
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}[{index}]")
    else:
        assert found == expected, where


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The contents of `LAST` and `BEST` after a run with these settings that nothing stops."""
    known = {}

    def left(config):
        key = repr(replace(config, data="any", out="any"))
        if key not in known:
            out = str(tmp_path_factory.mktemp("unbroken") / "run")
            train(replace(config, out=out))
            known[key] = everything_in(out), everything_in(out, BEST)
        return known[key]

    return left


def stop_after(monkeypatch, steps, number=signal.SIGINT):
    """Let the signal come during the given step, counted from 1."""
    real, count = running.Trainer.step, []

    def step(self, *arguments):
        count.append(1)
        if len(count) == steps:
            os.kill(os.getpid(), number)
        return real(self, *arguments)

    monkeypatch.setattr(running.Trainer, "step", step)


@pytest.mark.parametrize("settings", [PLAIN, RICH, HALF, NATIVE], ids=["plain", "rich", "fp16", "native"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(config, unbroken, monkeypatch, settings, steps):
    """Four epochs of two steps: stopped within the first, at its end, within the third."""
    config = replace(config, epochs=4, **settings)
    last, best = unbroken(config)
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    torch.manual_seed(999)  # another process has another state
    train(config, resume=True)
    assert_equal(everything_in(config.out), last)
    assert_equal(everything_in(config.out, BEST), best)


def test_two_epochs_and_two_more_equal_four(config, unbroken):
    train(replace(config, workers=2))
    train(replace(config, epochs=4), resume=True)
    assert_equal(everything_in(config.out), unbroken(replace(config, epochs=4))[0])


def test_going_on_with_another_batch_size_sees_the_rest_of_the_epoch(config, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    seen = []
    monkeypatch.setattr(
        running.LossMonitor, "add", lambda self, loss, count, where: seen.append((count, where().split(", ")[1:]))
    )
    train(replace(config, batch_size=1, epochs=1), resume=True)
    batches = running.EpochBatches(6, 4, config.seed)
    assert seen == [(1, [f"car{index}.jpg"]) for index in batches.order()[4:]]


def test_a_stop_during_validation_loses_no_training(config, unbroken, monkeypatch):
    real, done = running.compute_metrics, []

    def noting_the_end(self, items, *rest):
        try:
            yield from items
        finally:
            done.append("bar closed")

    with monkeypatch.context() as patch:
        patch.setattr(running, "compute_metrics", lambda *rest: (os.kill(os.getpid(), signal.SIGTERM), real(*rest))[1])
        patch.setattr(running.Display, "through", noting_the_end)
        patch.setattr(
            running.Trainer, "save", lambda self, save=running.Trainer.save: (done.append("saved"), save(self))
        )
        with pytest.raises(SystemExit) as caught:
            train(config)
    assert caught.value.code == 143
    assert done == ["bar closed", "saved"]
    assert load_checkpoint(Path(config.out) / LAST).extra["position"] == 6
    train(config, resume=True)
    assert_equal(everything_in(config.out), unbroken(config)[0])


def test_within_an_epoch_it_is_saved_every_few_minutes(config, unbroken, monkeypatch):
    """After a crash (no signal) the run goes on from the last save, not from the epoch's beginning."""
    real, positions = running.Trainer.save_last, []

    def save_and_crash(self, losses):
        real(self, losses)
        positions.append(self.position)
        raise RuntimeError("crash")

    with monkeypatch.context() as patch:
        patch.setattr(running.Trainer, "save_last", save_and_crash)
        with pytest.raises(RuntimeError, match="crash"):
            train(replace(config, save_minutes=1e-9))
    assert positions == [4]
    train(config, resume=True)
    assert_equal(everything_in(config.out), unbroken(config)[0])


def test_a_stop_between_the_two_files_loses_no_best_weights(config, monkeypatch):
    """Whatever the checkpoint's history says is the best must be there: stop after the first file of an epoch."""
    real, saved = running.save_checkpoint, []

    def stop_at_second(path, *rest, **extra):
        if saved:
            raise RuntimeError("crash")
        saved.append(path)
        real(path, *rest, **extra)

    with monkeypatch.context() as patch:
        patch.setattr(running, "save_checkpoint", stop_at_second)
        with pytest.raises(RuntimeError):
            train(config)
    assert [path.name for path in saved] == [BEST]
    with pytest.raises(DataError, match=r"model\.pth: this folder holds a model already; choose another --out"):
        train(config)
    (Path(config.out) / BEST).unlink()
    train(config)


def test_files_that_a_kill_left_out_are_written_on_resume(config, drawn_curves, monkeypatch):
    """The checkpoint comes first; curves and table follow from it."""

    def killed(self, history):
        if history:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(running.RunFolder, "write_history", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(replace(config, epochs=1))
    assert not (Path(config.out) / "metrics.csv").exists()
    with pytest.raises(ConfigError, match="1 epoch trained already"):
        train(replace(config, epochs=1), resume=True)
    assert (Path(config.out) / "metrics.csv").read_text().count("\n") == 2
    assert (Path(config.out) / "curves.png").stat().st_size > 1000


def test_seconds_of_an_epoch_are_those_of_all_its_parts(config, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    path = Path(config.out) / LAST
    content = torch.load(path, weights_only=True)
    assert 0 < content["seconds"] < 60
    torch.save(content | {"seconds": 1000.0}, path)
    train(replace(config, epochs=1), resume=True)
    (row,) = load_checkpoint(path).extra["history"]
    assert row["train_seconds"] == 1000
    assert 1000 < row["seconds"] < 1060


def test_a_full_disk_leaves_the_last_checkpoint_whole(config, monkeypatch):
    train(replace(config, epochs=1))
    before = (Path(config.out) / LAST).read_bytes()
    real = torch.save

    def full(content, path):
        real(content, path)
        with open(path, "rb+") as file:
            file.truncate(1000)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OutputError, match=r"cannot be written \(no space left on device\); free some space"):
            train(config, resume=True)
    assert (Path(config.out) / LAST).read_bytes() == before
    assert not list(Path(config.out).glob(".*.tar"))
    train(config, resume=True)


@pytest.mark.parametrize("missing", ["optimizer", "history", "position", "random", "precision", "data"])
def test_a_damaged_checkpoint_is_named(config, missing):
    train(replace(config, epochs=1))
    path = Path(config.out) / LAST
    content = torch.load(path, weights_only=True)
    del content[missing]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"is damaged .*{missing}"):
        train(config, resume=True)


def test_a_damaged_run_is_refused_with_what_to_use_in_its_place(config):
    """One bit of the optimizer's state is flipped; another entry is changed, with right checksums."""
    train(replace(config, epochs=1))
    folder = Path(config.out)
    path, best = folder / LAST, folder / BEST
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    values = content["optimizer"]["state"][3]["exp_avg"].untyped_storage()
    data = bytearray(whole)
    data[whole.index(bytes(values)) + 5] ^= 4
    path.write_bytes(data)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.name != ".lock"}
    use = f"use a backup of it, or start a new run with another --out and --init-from {best}"
    with pytest.raises(CheckpointError) as caught:
        train(config, resume=True)
    record = re.search(r" (data/\d+) differs", str(caught.value))[1]
    assert (
        str(caught.value) == f"{path}: is damaged: its record {record} differs from its checksum; copy it again; {use}"
    )
    content["optimizer"]["state"][3]["exp_avg"][0] = float("nan")
    torch.save(content, path)
    before[path] = path.stat().st_mtime_ns
    with pytest.raises(CheckpointError) as caught:
        train(config, resume=True)
    wrong = "optimizer.state.3.exp_avg: found NaN or infinite values, expected finite ones"
    assert str(caught.value) == f"{path}: is damaged ({wrong}); {use}"
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.name != ".lock"}
    best.unlink()
    with pytest.raises(CheckpointError, match=r"; use a backup of it, or start a new run with another --out$"):
        train(config, resume=True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lr", float("nan"), "its settings are damaged (--lr nan: expected 1e-12 to 1000)"),
        ("widths", [[4]], "its setting widths is damaged (found a tuple)"),
        ("loss", {}, "its setting loss is damaged (found a dict)"),
    ],
)
def test_damaged_settings_of_a_run_are_named(config, name, value, message):
    train(replace(config, epochs=1))
    path = Path(config.out) / LAST
    content = torch.load(path, weights_only=True)
    content["config"][name] = value
    torch.save(content, path)
    with pytest.raises(CheckpointError) as caught:
        train(config, resume=True)
    assert str(caught.value) == f"{path}: {message}; start a new run, with --init-from {path}"


def command(config, *more):
    settings = asdict(config)
    file = Path(config.out).with_suffix(".toml")
    file.write_text(
        "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items() if value is not None) + "\n"
    )
    return [sys.executable, "-m", "unet_core.train", "--config", str(file), *more]


@pytest.fixture
def start():
    """Start a trainer in a session of its own, whose whole group can be signalled as a terminal does it."""
    started = []

    def start(config, *more):
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(command(config, *more), stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def long(config, data):
    """A run that would take minutes, in a process of its own, with workers."""
    for index in range(6, 60):
        write_pair(data, "train", f"car{index}", seed=index)
    return replace(config, epochs=1000, workers=2, batch_size=4)


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_to_the_whole_group_finish_the_step_and_save(start, long, number, code):
    process = start(long)
    wait_for(Path(long.out) / LAST, process)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert f"stopped and saved; resume with: python -m unet_core.train --out {long.out} --resume" in said
    assert "Traceback" not in said
    first = load_checkpoint(Path(long.out) / LAST).extra
    train(replace(long, epochs=len(first["history"]) + 1, workers=0), resume=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_after_its_step(config, monkeypatch, number):
    real, steps = running.Trainer.step, []

    def step(self, *arguments):
        steps.append(1)
        done = real(self, *arguments)
        os.kill(os.getpid(), number)
        return done

    monkeypatch.setattr(running.Trainer, "step", step)
    with pytest.raises(BaseException) as ended:
        train(replace(config, batch_size=1))
    assert type(ended.value) in (KeyboardInterrupt, SystemExit)
    assert len(steps) == 1
    assert load_checkpoint(Path(config.out) / LAST).extra["position"] == 1


HUNG_UP = """
import os, pty, sys, time
child, terminal = pty.fork()
if not child:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
seen = b""
while b"epoch 1/" not in seen:
    seen += os.read(terminal, 10000)
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.parametrize("workers", [0, 2])
def test_a_closed_terminal_saves_and_ends_as_told(long, workers):
    training = command(replace(long, workers=workers))[1:]
    done = subprocess.run([sys.executable, "-c", HUNG_UP, *training], capture_output=True, text=True, timeout=120)
    assert done.stdout == "129\n", done.stderr
    assert load_checkpoint(Path(long.out) / LAST).extra["position"] > 0


@pytest.mark.slow
@pytest.mark.timing
def test_a_second_signal_ends_at_once(start, long):
    process = start(replace(long, workers=0, epochs=1, batch_size=60, height=320, width=480, widths=(32, 64)))
    wait_for(Path(long.out) / "config.json", process)
    time.sleep(1)  # within the one long step
    process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - asked < 2
    process.communicate()


@pytest.mark.slow
@pytest.mark.timing
def test_kills_at_any_moment_leave_a_run_that_goes_on_to_the_same_end(config, unbroken):
    """SIGKILL, again and again, while every step is saved; the end equals that of an unbroken run."""
    config = replace(config, epochs=12, save_minutes=1e-9, workers=1)
    last, seen = Path(config.out) / LAST, []
    for delay in (0.02, 0.3, 0.11, 0.5, 0.05, 0.2):
        began = last.stat().st_mtime_ns if last.exists() else None
        process = start_training(config, resume=began is not None)
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if last.exists() and last.stat().st_mtime_ns != began:
                break
            time.sleep(0.005)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        extra = load_checkpoint(last).extra
        seen.append((len(extra["history"]), extra["position"]))
        if len(extra["history"]) == config.epochs:
            break
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    if seen[-1][0] < config.epochs:
        train(config, resume=True)
    assert_equal(everything_in(config.out), unbroken(config)[0])


def test_settings_survive_a_round_trip_through_the_checkpoint(config):
    train(replace(config, epochs=1, ema=0.5, classes=("thing",)))
    stored = load_checkpoint(Path(config.out) / LAST).extra["config"]
    assert TrainConfig(**stored) == replace(config, epochs=1, ema=0.5, classes=("thing",))
