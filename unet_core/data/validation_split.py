"""The validation images that are split off from the training images if no folder holds any."""

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime.errors import DataError

if TYPE_CHECKING:
    from unet_core.data.pairs import Layout, Pair


def split_by_group(pairs: Sequence["Pair"], layout: "Layout") -> tuple[list["Pair"], list["Pair"]]:
    """Split off about `val_share` of the images, in whole groups, which are chosen by a hash of their names.

    The choice depends on the names alone, so `evaluate` finds the same images again. When images are added, few of the
    old ones change sides.

    Raises:
        DataError: there is only one group.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(group_of(pair.name, layout.group), []).append(pair)
    if len(groups) < 2:
        folder, add = pairs[0].image.parent, f"add val_images and val_{layout.masks}"
        if len(pairs) == 1:
            raise DataError(f"{folder}: found 1 image, expected 2 or more to split some off to validate on; or {add}")
        raise DataError(
            f"{folder}: all {len(pairs)} images are one group ({next(iter(groups))!r}, their names before the last "
            f"{layout.group!r}), so none can be split off to validate on; give another --group, or {add}"
        )
    order = sorted(groups, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    chosen: set[str] = set()
    count, wanted = 0, layout.val_share * len(pairs)
    for name in order:
        size = len(groups[name])
        # A group that would overshoot by more than is missing now is skipped: a large group may come first.
        if count + size / 2 <= wanted and len(chosen) + 1 < len(groups):
            chosen.add(name)
            count += size
    chosen = chosen or {min(order, key=lambda name: len(groups[name]))}
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        sides[group_of(pair.name, layout.group) in chosen].append(pair)
    return sides


def group_of(name: str, separator: str) -> str:
    """The part of a name that the views of one thing share: all before the last separator, or else the whole name."""
    return (name.rpartition(separator)[0] if separator else "") or name
