"""A script without `if __name__ == "__main__":`, which each process that loads images runs from its beginning."""

import multiprocessing
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader

from runtime.errors import UnetError
from unet_core.data import restarts
from unet_core.data.restarts import starts_unguarded
from unet_core.data.workers import batches_of

SCRIPT = """
import multiprocessing

from unet_core.config import TrainConfig
from unet_core.train import train

print("begun")
multiprocessing.set_start_method("spawn", force=True)
options = {{"widths": (4, 8), "height": 32, "width": 48, "epochs": 1, "device": "cpu", "tensorboard": False}}
train(TrainConfig(data="{data}", out="{out}", workers=1, cache_gb=0.0, **options))
"""


def test_a_script_that_starts_again_is_told_the_reason(data, tmp_path):
    file = tmp_path / "train_cars.py"
    file.write_text(SCRIPT.format(data=data, out=tmp_path / "run"))
    ended = subprocess.run([sys.executable, file], capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f"runtime.errors.UnetError: {file}: starts again in each process that loads images (start method spawn); put "
        'what it does under `if __name__ == "__main__":`, or give workers=0; nothing was saved yet: start again'
    )
    assert "another trainer" not in ended.stderr  # as the processes would say that train, too
    assert ended.stderr.count("Traceback") == 2
    assert ended.stdout.count("begun") == 2


@pytest.mark.parametrize("unguarded", [True, False])
def test_a_process_that_ends_before_it_took_its_data_is_told_by_the_script(monkeypatch, unguarded):
    """A large data set fills the pipe to a process, which breaks when the process ends."""

    def broken(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(DataLoader, "__iter__", broken)
    monkeypatch.setattr("unet_core.data.workers.starts_unguarded", lambda: unguarded)
    with pytest.raises(UnetError, match="starts again in each" if unguarded else r"cannot be started \(broken pipe\)"):
        next(batches_of(DataLoader([])))


@pytest.mark.parametrize(
    ("method", "lines", "unguarded"),
    [
        ("spawn", "found = starts_unguarded()", True),
        ("forkserver", "def main():\n    return starts_unguarded()\nfound = main()", True),
        ("fork", "found = starts_unguarded()", False),
        ("spawn", "if __name__ == '__main__':\n    found = starts_unguarded()", False),
    ],
)
def test_a_guard_is_seen(monkeypatch, method, lines, unguarded):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    names = {"__name__": "__main__", "starts_unguarded": starts_unguarded}
    exec(compile(lines, "script.py", "exec"), names)
    assert names["found"] is unguarded


def test_without_a_script_on_the_stack_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    monkeypatch.setattr(restarts.sys, "_getframe", lambda: type("Frame", (), {"f_back": None}))
    assert not starts_unguarded()
