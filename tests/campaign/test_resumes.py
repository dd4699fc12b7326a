"""Damaged states of runs, written with right checksums: refused before anything is restored, or the run goes on."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders import write_pair
from trained import write_no_curves

from runtime.errors import NotFiniteError, UnetError
from unet_core.config import TrainConfig
from unet_core.evaluation.best_epoch import epochs_without_progress, reductions
from unet_core.reporting.progress import Display, progress_text
from unet_core.reporting.tables import final_table, metrics_csv
from unet_core.train import merge_settings, train
from unet_core.training.distributed import Processes
from unet_core.training.run import checkpoint_to_resume, find_records, load_records
from unet_core.training.run_directory import LAST
from unet_core.training.trainer import Trainer

KINDS = {
    "adam": {},
    "adamw": {"optimizer": "adamw", "ema": 0.9, "schedule": "cosine"},
    "fp16": {"amp": "fp16", "optimizer": "sgd", "schedule": "plateau"},
    "rmsprop": {"optimizer": "rmsprop", "classes": ("a", "b"), "patience": 9},
    "plain sgd": {"optimizer": "sgd", "momentum": 0.0},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of one epoch of each kind: its settings, its records, and the content of its checkpoint."""
    folder = tmp_path_factory.mktemp("resumes")
    for split in ("train", "val"):
        for index in range(2):
            write_pair(folder / "data", split, f"{split}{index}", seed=index)
            write_pair(folder / "two", split, f"{split}{index}", seed=index, foreground=1, mask_suffix=".png")
    left = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_core.training.run_directory.save_curves", write_no_curves)
        for name, settings in KINDS.items():
            config = TrainConfig(
                data=str(folder / ("two" if "classes" in settings else "data")),
                out=str(folder / name),
                widths=(2,),
                height=16,
                width=16,
                batch_size=2,
                epochs=1,
                workers=0,
                cache_gb=0,
                tensorboard=False,
                device="cpu",
                **settings,
            )
            train(config)
            records = find_records(config)
            load_records(config, records, Processes(), Display(quiet=True))
            content = torch.load(Path(config.out) / LAST, weights_only=True)
            left.append((replace(config, epochs=2), records, content))
    return left


def places(content, path=()):
    """All places in a content, those of containers too."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


VALUES = (
    None,
    True,
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    -(10**30),
    0.5,
    -0.5,
    1e38,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "x",
    "\x1b[31m\n" * 50,
    "é" * 10_000,
    b"x",
    [],
    [0],
    [None, {}],
    (),
    (1, 2),
    {},
    {"x": 1},
    {1: [2]},
    set(),
    torch.zeros(0),
    torch.zeros(()),
    torch.tensor(math.nan),
    torch.ones(3, dtype=torch.int64),
    torch.zeros(5056, dtype=torch.uint8),
    torch.zeros(2, 2, dtype=torch.complex64),
    torch.zeros(1).expand(2, 3, 3, 3),
    torch.zeros(3, 3).to_sparse(),
)
"""Values that an entry is replaced by."""


def change_tensor(random, value):
    """A tensor that differs in its values, its shape or its type."""
    value = value.clone()
    match int(random.integers(8)):
        case 0:
            return value.double() if value.is_floating_point() else value.float()
        case 1:
            return value.reshape(-1)[: int(random.integers(max(1, value.numel())))]
        case 2:
            return value.unsqueeze(0)
        case 3:
            return value.T if value.dim() == 2 else value.transpose(0, -1) if value.dim() > 1 else value.flip(0)
        case 4:
            return -value if value.is_floating_point() else 255 - value
        case 5:
            return value[..., :1].expand(value.shape) if value.dim() else value.expand(2)
    flat = value.reshape(-1)
    if flat.numel():
        place = int(random.integers(flat.numel()))
        wrong = [math.nan, math.inf, -1e30, 1e30] if value.is_floating_point() else [0, 1, 255]
        flat[place] = wrong[int(random.integers(len(wrong)))]
    return flat.reshape(value.shape)


def mutate(random, content):
    """Change one entry of a content, and say which."""
    every = [place for place in places(content) if place[0] not in ("state_dict", "card")]
    entries = sorted({place[0] for place in every})
    entry = entries[int(random.integers(len(entries)))]  # each is as likely, however large it is
    those = [place for place in every if place[0] == entry]
    *path, key = those[int(random.integers(len(those)))]
    part = content
    for step in path:
        part = part[step]
    value = part[key]
    action = int(random.integers(8))
    if action == 0:
        del part[key]
    elif action == 1 and isinstance(part, dict):
        part[("x", 7, None, "state")[int(random.integers(4))]] = value
    elif action == 2 and isinstance(part, list):
        part.append(value)
    elif action == 3:
        other = every[int(random.integers(len(every)))]
        found = content
        for step in other:
            found = (
                found[step] if isinstance(found, dict | list) and (not isinstance(found, dict) or step in found) else 0
            )
        part[key] = found if found is not content else None
    elif isinstance(value, torch.Tensor) and action < 7:
        part[key] = change_tensor(random, value)
    elif isinstance(value, int | float) and not isinstance(value, bool) and action < 6:
        part[key] = (value + 1, -value, value * 1000, value + 0.5, float(value), -value - 1)[int(random.integers(6))]
    else:
        part[key] = VALUES[int(random.integers(len(VALUES)))]
    return ".".join(map(str, (*path, key)))


@pytest.fixture
def attempt(runs, monkeypatch):
    monkeypatch.setattr("unet_core.training.run_directory.save_curves", write_no_curves)

    def attempt(random):
        config, records, content = runs[int(random.integers(len(runs)))]
        content = copy.deepcopy(content)
        place = mutate(random, content)
        last = Path(config.out) / LAST
        torch.save(content, last)
        before = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*")}
        try:
            settings = merge_settings(None, {"out": config.out, "epochs": 2}, resume=True)
            trainer = Trainer(settings, *records, resumed=checkpoint_to_resume(settings))
        except UnetError as error:
            if not str(error).isprintable():
                raise ValueError(f"a message that is no line: {error!r}") from error
            assert before == {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*")}, place
            return f"refused: {type(error).__name__}"
        try:
            go_on(trainer)
        except NotFiniteError:  # of a step with numbers that were finite, but huge
            return "goes on, then stops: NotFiniteError"
        assert repr(checkpoint_to_resume(settings).extra["history"]) == repr(trainer.history), place  # NaN equals none
        return "goes on"

    return attempt


def go_on(trainer):
    """Do what the rest of a run does, in a step: everything that the state is used for."""
    history, config = trainer.history, trainer.config
    if history:
        metrics_csv(history)
        final_table(history, config)
        trainer.folder.write_history(history)
    progress_text(history, part=0.5, seconds=trainer.seconds, epochs=config.epochs, loss=trainer.monitor.mean)
    assert epochs_without_progress(history) <= len(history)
    assert reductions(history, 1) <= len(history)
    trainer.batches.epoch, trainer.batches.position = trainer.epoch, trainer.position
    trainer.network.train()
    if trainer.position < len(trainer.train):
        trainer.step(iter(trainer.make_loader()), "")
    trainer.check_finite()
    trainer.save()


def test_damaged_states_are_refused_or_the_run_goes_on(campaign, attempt):
    campaign.run("resumes", attempt, share=0.15)
