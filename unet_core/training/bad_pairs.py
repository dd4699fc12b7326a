"""Pairs that cannot be trained on: refused, with a file that lists all of them, or left out."""

from pathlib import Path

from runtime.errors import DataError
from runtime.support.files import write_text
from unet_core.config import TrainConfig
from unet_core.data.cache import faults_of
from unet_core.data.faults import problems_table, refuse
from unet_core.data.names import LISTED_FILES
from unet_core.data.records import Records
from unet_core.data.skipping import Found, leave_out
from unet_core.training.run_directory import PROBLEMS

Sets = tuple[Records, Records]
"""The records to train on and to validate on."""


def refuse_or_leave_out(config: TrainConfig, sets: Sets, found: Found, *, writes: bool) -> None:
    """Refuse faulty pairs, or with `skip_bad` leave them out. Where the error does not name all, `PROBLEMS` does.

    `writes`: this process is the one that writes files.

    Raises:
        DataError: there are faulty pairs and no `skip_bad`; or nothing else is left to train or to validate on.
        OutputError: the file cannot be written.
    """
    if config.skip_bad:
        leave_out(sets, found)
        return
    faults, total = faults_of(sets, found), sum(map(len, sets))
    opening = f"{len(faults)} of {total} pairs cannot be used, fix or remove them"
    if len(faults) < total:
        opening += ", or give --skip-bad"
    try:
        refuse(faults, total, opening)
    except DataError as error:
        if len(faults) <= LISTED_FILES:
            raise
        file = Path(config.out) / PROBLEMS
        if writes:
            write_text(file, problems_table(faults, (), Path(config.data)))
        raise DataError(f"{error}; {file} lists them all") from None
