"""What a run tells of its data before the first epoch."""

import shutil

from unet_core.reporting.progress import Display
from unet_core.training.distributed import Processes
from unet_core.training.run import load_records


def notes(config, capsys):
    """The notes on the data of a run."""
    load_records(config, Processes(), Display())
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]


def test_a_split_that_may_not_be_meant_is_told(config, data, capsys):
    for kind in ("images", "masks"):
        shutil.rmtree(data / f"val_{kind}")
    for path in sorted(data.glob("train_*/car*")):
        path.rename(path.with_name(f"{('cat', 'dog')[int(path.name[3]) // 3]}_{path.name[3:]}"))
    (note,) = notes(config, capsys)
    assert note == (
        "validation has 3 of 6 images where --val-share asks for 1: all that are named cat_, and training has none of "
        "these; if names with the same beginning up to '_' are not views of one thing, give --group ''"
    )
