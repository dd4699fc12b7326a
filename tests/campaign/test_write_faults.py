"""Every Nth call that writes fails, or the disk is full from there on: one line or a note, and old files stay whole."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from caching import STRETCH, assert_exact, write_pairs
from campaigns import THIN_RUN
from click.testing import CliRunner
from onnx_files import write_onnx
from PIL import Image
from write_faults import ERRORS, Faults, files_no_larger_than

from export.triton import write_repository
from runtime.commands.predict import predict
from runtime.errors import UnetError
from runtime.support.files import write_text
from unet_core.checkpoint import load_checkpoint
from unet_core.config import TrainConfig
from unet_core.data.cache import Cache, check_and_cache, pending
from unet_core.data.records import Records
from unet_core.train import train

pytestmark = pytest.mark.slow


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_curves_as_text(path, history, classes=()):
    write_text(path, f"curves of {len(history)} epochs\n")


def leftovers(folder):
    return sorted(name for name in contents(folder) if Path(name).name.startswith(".") and Path(name).name != ".lock")


class Predicting:
    """`unet-predict` into a folder that holds older answers."""

    def __init__(self, root, model):
        self.root, self.model = root / "predicting", model
        (self.root / "in").mkdir(parents=True)
        for index in range(3):
            noise = np.random.default_rng(index).integers(0, 256, (20, 30, 3), np.uint8)
            Image.fromarray(noise).save(self.root / "in" / f"{index}.png")
        self.run(self.root / "clean")
        self.expected = contents(self.root / "clean")

    def old(self, folder):
        folder.mkdir()
        (folder / "0.png").write_bytes(b"old")

    def run(self, folder):
        arguments = [self.model, self.root / "in", "-o", folder, "--device", "cpu"]
        result = CliRunner().invoke(predict, [str(item) for item in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        lines = result.stderr.splitlines()
        assert all(line.startswith(("error: ", "note: ")) for line in lines), lines
        if result.exit_code:
            raise UnetError(lines[-1])

    def check(self, folder):
        found = contents(folder)
        for name in set(found) - set(leftovers(folder)):
            assert found[name] in (b"old", self.expected[name]), name

    def check_all(self, folder):
        assert contents(folder) == self.expected


class Serving:
    """A repository for Triton, in place of an older one."""

    def __init__(self, root, model):
        self.model = model
        self.expected = contents(write_repository(model, root / "serving").parent)

    def old(self, folder):
        write_repository(self.model, folder)

    def run(self, folder):
        write_repository(self.model, folder)

    def check(self, folder):
        found = {name: content for name, content in contents(folder).items() if not name.startswith(".")}
        assert {name.split("/.replaced/")[-1] for name in found} <= set(self.expected) | {
            name.split("/", 1)[1] for name in self.expected
        }

    def check_all(self, folder):
        assert {name: content for name, content in contents(folder).items() if name[0] != "."} == self.expected


class Caching:
    """The cache of decoded images, which never makes a run fail."""

    def __init__(self, root, model):
        (root / "caching").mkdir()
        self.pairs = write_pairs(root / "caching" / "pictures")

    def old(self, folder):
        pass

    def run(self, folder):
        records = Records(self.pairs, STRETCH)
        check_and_cache((records,), Cache(folder=folder, limit=10**9), lambda _: None, lambda _: None)
        assert_exact(records)

    def check(self, folder):
        records = Records(self.pairs, STRETCH)
        pending((records,), Cache(folder=folder, limit=10**9))
        assert_exact(records)

    def check_all(self, folder):
        records = Records(self.pairs, STRETCH)
        assert pending((records,), Cache(folder=folder, limit=10**9)) == 0
        assert_exact(records)


class Training:
    """The second epoch of a run."""

    def __init__(self, root, data):
        self.config = TrainConfig(
            data=str(data),
            out=str(root / "training"),
            batch_size=4,
            epochs=1,
            **THIN_RUN,
        )
        train(self.config)

    def old(self, folder):
        shutil.copytree(self.config.out, folder)

    def run(self, folder):
        train(replace(self.config, out=str(folder), epochs=2), resume=True)

    def check(self, folder):
        extra = load_checkpoint(folder / "my_checkpoint.pth.tar").extra
        load_checkpoint(folder / "model.pth")
        assert len(extra["history"]) in (1, 2)
        json.loads((folder / "config.json").read_text())

    def check_all(self, folder):
        assert len(load_checkpoint(folder / "my_checkpoint.pth.tar").extra["history"]) == 2
        assert (folder / "metrics.csv").read_text().count("\n") == 3


@pytest.fixture(scope="module")
def works(tmp_path_factory, shared_exports):
    """Works by name, the number of calls that each makes, and the size of its largest file."""
    root = tmp_path_factory.mktemp("faults").resolve()
    from folders import write_pair

    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            write_pair(root / "data", split, f"{split}{index}", seed=index, size=(16, 16))
    write_onnx(root / "m.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_core.training.run_directory.save_curves", write_curves_as_text)
        made = {}
        for kind in (Predicting, Serving, Caching, Training):
            work, folder = kind(root, root / ("data" if kind is Training else "m.onnx")), root / "counted"
            work.old(folder)
            with Faults(folder).active() as faults:
                work.run(folder)
            made[kind.__name__] = work, faults.count, max(map(len, contents(folder).values()))
            shutil.rmtree(folder)
        yield root, made


def test_every_write_may_fail(campaign, works):
    root, made = works

    def attempt(random):
        name = str(random.choice(list(made), p=[0.3, 0.2, 0.3, 0.2]))
        work, calls, largest = made[name]
        folder = root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        work.old(folder)
        error, forever = int(random.choice(ERRORS)), bool(random.integers(2))
        faults = Faults(folder, failing=int(random.integers(1, calls + 1)), error=error, forever=forever)
        limit = int(random.integers(largest)) if random.integers(4) == 0 else None
        try:
            with faults.active() if limit is None else files_no_larger_than(limit):
                work.run(folder)
            outcome = f"{name}: done"
        except UnetError as refusal:
            outcome = f"{name}: {'several lines' if chr(10) in str(refusal) else 'one line'}"
            if "several" in outcome:
                raise AssertionError(str(refusal)) from refusal
        if folder.exists():
            work.check(folder)
            assert not leftovers(folder) or "unlink" in faults.hit or "rmdir" in faults.hit, leftovers(folder)
        if name == "Training" and not (folder / "my_checkpoint.pth.tar").exists():
            return outcome
        try:
            work.run(folder)
        except UnetError as refusal:
            if "trained already" not in str(refusal):
                raise AssertionError(str(refusal)) from refusal
        work.check_all(folder)
        assert not leftovers(folder)
        return outcome

    tally = campaign.run("write_faults", attempt, share=0.1)
    assert tally.cases
