"""The folder of a run: its files, the lock on it, and writing the files that are not checkpoints."""

import csv
import io
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from runtime.errors import DataError, OutputError, one_line
from runtime.support.files import (
    is_formula,
    make_inner_folder,
    new_folder,
    reason_of,
    refuse_inner_links,
    remove_leftovers,
    remove_leftovers_of,
    write_bytes,
    write_text,
)
from runtime.support.locks import require_regular
from unet_core.config import TrainConfig
from unet_core.data.faults import Fault
from unet_core.data.pairs import Pair
from unet_core.data.records import Records
from unet_core.evaluation.worst_images import Worst
from unet_core.reporting.curves import save_curves
from unet_core.reporting.panels import panel, save_panel
from unet_core.reporting.tables import metrics_csv
from unet_core.training.distributed import Processes

LAST = "my_checkpoint.pth.tar"
BEST = "model.pth"
FILES = "files.csv"
PROBLEMS = "problems.csv"
LEFT_OUT = "left out"
"""In `FILES`, the split of files that are neither trained nor validated on, since they cannot be used."""

LOCK = ".lock"
PICTURES, EVENTS = "saved_images", "tensorboard"
WRITTEN = (LAST, BEST, FILES, PROBLEMS, "config.json", "metrics.csv", "curves.png")
"""All files that a run writes atomically, but its pictures."""

NAME_ERRORS = "surrogateescape"
"""Error handler that writes file names of invalid text byte for byte."""

NAMED = 5
"""Maximum number of files that a message names."""


@contextmanager
def locked_folder(folder: Path, processes: Processes) -> Iterator[None]:
    """Keep other trainers out of a run's folder; remove a new folder again if nothing was written to it."""
    if not processes.first:
        yield
        return
    with new_folder(folder):
        try:
            lock = FileLock(require_regular(folder / LOCK))
            lock.acquire(timeout=0)
        except Timeout as error:
            raise DataError(f"{folder}: another trainer is running in this folder; choose another --out") from error
        except (OSError, NotImplementedError) as error:  # the last: a file system without locks
            reason = reason_of(error) if isinstance(error, OSError) else "the file system has no locks"
            raise OutputError(f"{folder / LOCK}: cannot be locked ({reason}); choose another --out") from error
        try:
            remove_leftovers_of(folder / name for name in WRITTEN)
            yield
        except BaseException:
            if not any(path.name != LOCK for path in folder.iterdir()):
                with suppress(OSError):
                    (folder / LOCK).unlink()
            raise
        finally:
            lock.release()


def refuse_used_folder(folder: Path) -> None:
    """Refuse to start a new run where a run or a model is.

    Raises:
        DataError: the folder holds one.
    """
    if os.path.exists(folder / LAST):  # noqa: PTH110 - unlike Path.exists it takes any name
        raise DataError(
            f"{folder / LAST}: this folder holds a run already; continue it with --resume or choose another --out"
        )
    if os.path.exists(folder / BEST):  # noqa: PTH110
        raise DataError(f"{folder / BEST}: this folder holds a model already; choose another --out, or move it away")


def instead_of_last(folder: Path) -> str:
    """Say what to use in place of the damaged checkpoint of a run."""
    weights = f" and --init-from {shlex.quote(str(folder / BEST))}" * (folder / BEST).is_file()
    return f"use a backup of it, or start a new run with another --out{weights}"


class RunFolder:
    """The files of a run; only the first process writes them."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path, self.config = path, config

    @property
    def last(self) -> Path:
        """The checkpoint with the last state, from which a run resumes."""
        return self.path / LAST

    @property
    def best(self) -> Path:
        """The weights of the best epoch."""
        return self.path / BEST

    @property
    def tensorboard(self) -> Path | None:
        """The folder of TensorBoard's files; None if they are switched off."""
        return self.path / EVENTS if self.config.tensorboard else None

    @property
    def what_is_kept(self) -> str:
        """A sentence on what is saved when the run ends early, and how to continue."""
        if self.last.exists():
            return "the last checkpoint is kept: use --resume"
        if self.best.exists():
            return f"only {BEST} was saved, from which a run cannot resume: start again in another --out"
        return "nothing was saved yet: start again"

    @property
    def instead_of_last(self) -> str:
        """Advice on what to use in place of a damaged checkpoint."""
        return instead_of_last(self.path)

    def refuse_links(self) -> None:
        """Refuse links in place of the folders that a run writes to; raises OutputError."""
        for name in (PICTURES, EVENTS) if self.config.tensorboard else (PICTURES,):
            refuse_inner_links(self.path, Path(name))

    def begin(self, train: Sequence[Pair], val: Sequence[Pair], left_out: Sequence[Fault] = ()) -> None:
        """Write all settings, and which files are in training and validation, before the first epoch.

        `left_out`: pairs that are in neither.
        """
        with suppress(OSError):  # of a start that was refused
            (self.path / PROBLEMS).unlink()
        pictures = make_inner_folder(self.path, PICTURES)
        remove_leftovers(pictures, lambda stem, _: re.match(r"\d\d_", stem) is not None)
        if self.tensorboard is not None:
            make_inner_folder(self.path, EVENTS)
        write_text(self.path / "config.json", json.dumps(asdict(self.config), indent=2) + "\n")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("split", "file", "bytes", "problem"))
        sizes = file_sizes(train, val).items()
        rows: list[tuple[str, str, int | None, str]] = [(split, name, size, "") for (split, name), size in sizes]
        for pair, message in left_out:
            for path in pair.files:
                problem = one_line(message.removeprefix(f"{pair.place(path)}: "))
                rows.append((LEFT_OUT, f"{path.parent.name}/{path.name}", size_of(path), problem))
        writer.writerows((split, f"./{name}" if is_formula(name) else name, *facts) for split, name, *facts in rows)
        write_bytes(self.path / FILES, text.getvalue().encode("utf-8", NAME_ERRORS))

    def changes(self, train: Sequence[Pair], val: Sequence[Pair]) -> str:
        """Describe what differs from the files that the run began with; "" if that is not known."""
        try:
            with open(self.path / FILES, encoding="utf-8", errors=NAME_ERRORS, newline="") as file:
                before = {
                    (row["split"], row["file"].removeprefix("./")): int(row["bytes"])
                    for row in csv.DictReader(file)
                    if row["split"] != LEFT_OUT
                }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error):
            return ""
        now = file_sizes(train, val)
        kinds = {
            "gone": before.keys() - now.keys(),
            "new": now.keys() - before.keys(),
            "changed": {place for place in before.keys() & now.keys() if before[place] != now[place]},
        }
        parts = []
        for kind, changed in kinds.items():
            names = sorted({name for _, name in changed})
            if names:
                more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
                parts.append(f"{kind}: {', '.join(names[:NAMED])}{more}")
        return "; ".join(parts)

    def write_history(self, history: list[dict[str, float]]) -> None:
        """Write metrics.csv and curves.png."""
        if history:
            write_text(self.path / "metrics.csv", metrics_csv(history))
            save_curves(self.path / "curves.png", history, self.config.classes)

    def draw(self, worst: Worst, records: Records, epoch: int) -> list[NDArray[np.uint8]]:
        """Replace the pictures of the worst validation images, and return them, uint8 [height, width, 3]."""
        folder = make_inner_folder(self.path, PICTURES)
        for old in folder.glob("[0-9][0-9]_*.png"):
            old.unlink()
        pictures = []
        for place, item in enumerate(worst.items, 1):
            name = records.pairs[item.index].name
            title = f"{name}   Dice {item.dice:.4f}   epoch {epoch}"
            image = worst.picture(records, item)
            drawn = panel(image, item.predicted, item.truth, self.config.classes, title)
            save_panel(folder / f"{place:02}_{name}.png", drawn)
            pictures.append(drawn)
        return pictures


def size_of(path: Path) -> int | None:
    """The size of a file in bytes; None if it cannot be told."""
    with suppress(OSError):
        return path.stat().st_size
    return None


def file_sizes(train: Sequence[Pair], val: Sequence[Pair]) -> Mapping[tuple[str, str], int]:
    """Return the size in bytes of every file, by split and name."""
    sides = {"train": train, "val": val}
    return {
        (split, f"{path.parent.name}/{path.name}"): path.stat().st_size
        for split, pairs in sides.items()
        for pair in pairs
        for path in pair.files
    }
