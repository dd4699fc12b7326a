"""SIGKILL at any moment: what was written is whole, the next run goes on, and nothing is left behind."""

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from caching import STRETCH, assert_exact, write_pairs
from campaigns import THIN_RUN
from folders import write_pair
from forked import start, start_training
from trained import write_no_curves
from writers import cache_records, is_whole, write_files

from runtime.support.files import remove_leftovers_of
from unet_core.checkpoint import load_checkpoint
from unet_core.config import TrainConfig
from unet_core.data.cache import Cache, check_and_cache, pending
from unet_core.data.records import Records
from unet_core.train import train

pytestmark = pytest.mark.slow

NAMES = ("a.bin", "b.png", "c.pth.tar")
LAST, BEST = "my_checkpoint.pth.tar", "model.pth"
HIDDEN = ".[!l]*"
"""All hidden files but the lock."""


def kill_after(process, path, seconds, group=False):
    """Kill a process so many seconds after a path appears."""
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        assert process.is_alive(), "it ended by itself"
        time.sleep(0.002)
    time.sleep(seconds)
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def kill_writer(folder, seconds):
    kill_after(start(write_files, folder, NAMES), folder / NAMES[0], seconds)
    found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    assert found
    assert all(is_whole(path) for path in found)
    left = len(list(folder.glob(".*")))
    assert left <= 1
    remove_leftovers_of(folder / name for name in NAMES)
    assert not list(folder.glob(".*"))
    return f"files: {left} left, then none"


def kill_cache(folder, seconds, pairs):
    cache = Cache(folder=folder / "kept", limit=10**9)
    kill_after(start(cache_records, pairs, STRETCH, cache), cache.folder, seconds)
    records = Records(pairs, STRETCH)
    missing = pending((records,), cache)
    assert_exact(records)
    check_and_cache((records,), cache, lambda _: None, pytest.fail)
    assert_exact(records)
    assert records.stored == len(pairs)
    assert not list(records.folder.glob(".*"))
    return f"cache: {'part' if 0 < missing < len(pairs) else 'all' if not missing else 'none'} of it kept"


def kill_training(folder, seconds, config):
    config = replace(config, out=str(folder / "run"))
    run = Path(config.out)
    kill_after(start_training(config), run / BEST, seconds, group=True)
    has_last = (run / LAST).exists()
    done = len(load_checkpoint(run / LAST).extra["history"]) if has_last else 0
    load_checkpoint(run / BEST)
    if not has_last:
        (run / BEST).unlink()
    left = len(list(run.glob(HIDDEN)))
    train(replace(config, epochs=done + 1), resume=has_last)
    assert len(load_checkpoint(run / LAST).extra["history"]) == done + 1
    assert not [*run.glob(HIDDEN), *(run / "saved_images").glob(".*")]
    return f"training: {left} left, then none"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, pairs, and the settings of a run that saves all the time."""
    root = tmp_path_factory.mktemp("kills").resolve()
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            write_pair(root / "data", split, f"{split}{index}", seed=index, size=(16, 16))
    config = TrainConfig(
        data=str(root / "data"),
        out=str(root / "run"),
        batch_size=2,
        epochs=10_000,
        save_minutes=1e-9,
        **THIN_RUN,
    )
    (root / "warm").mkdir()
    kill_writer(root / "warm", 0)  # the server of processes takes seconds to import all they need
    return root, write_pairs(root / "pictures", 12), config


def test_kills_at_any_moment(campaign, place):
    root, pairs, config = place

    def attempt(random):
        kind, seconds, folder = random.choice(3, p=[0.4, 0.3, 0.3]), random.uniform(0, 0.3), root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if kind == 0:
            return kill_writer(folder, seconds)
        if kind == 1:
            return kill_cache(folder, seconds, pairs)
        return kill_training(folder, seconds, config)

    with patch("unet_core.training.run_directory.save_curves", write_no_curves):
        campaign.run("kills", attempt, share=0.1)
