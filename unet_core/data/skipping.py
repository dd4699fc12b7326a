"""Pairs that cannot be used and are left out, with `--skip-bad`."""

from collections.abc import Mapping, Sequence

from unet_core.data.cache import Advance, Note, check_and_cache, decode_all
from unet_core.data.faults import listed, refuse
from unet_core.data.records import Records

Found = Sequence[Mapping[int, str]]
"""For each set of records the error messages of its faulty pairs, by their index, as `decode_all` returns them."""


def leave_out(sets: Sequence[Records], found: Found) -> None:
    """Drop faulty pairs.

    Raises:
        DataError: a set has no others.
    """
    for records, faults in zip(sets, found, strict=True):
        records.leave_out(faults)
        if not records.pairs:
            total = len(records.left_out)
            refuse(records.left_out, total, f"none of {total} pairs can be used, fix them")


def note_of_left_out(sets: Sequence[Records], where: str = "") -> str:
    """Return a note that counts the pairs that were left out, and lists the first ones; "" if there are none.

    `where` says where all are listed.
    """
    faults = [fault for records in sets for fault in records.left_out]
    total = len(faults) + sum(map(len, sets))
    return f"--skip-bad: {len(faults)} of {total} pairs left out{where}: {listed(faults)}" if faults else ""


def check_or_leave_out(sets: Sequence[Records], skip_bad: bool, advance: Advance, note: Note) -> None:
    """Decode every pair once to see that it can be, and keep nothing of it. With `skip_bad`, drop the others.

    Raises:
        DataError: a pair cannot be used; with `skip_bad`, all pairs of a set.
    """
    if not skip_bad:
        check_and_cache(sets, None, advance, note)
        return
    leave_out(sets, decode_all(sets, None, advance, note))
    if left_out := note_of_left_out(sets):
        note(left_out)
