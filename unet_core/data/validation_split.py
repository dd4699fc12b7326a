"""The validation images that are split off from the training images if no folder holds any."""

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime.errors import DataError

if TYPE_CHECKING:
    from unet_core.data.pairs import Layout, Pair

MISSED = 2
"""Factor by which the share of validation images may differ from `val_share` before a note says so."""

NAMED_GROUPS = 5
"""Maximum number of groups that a note names."""


def split_by_group(pairs: Sequence["Pair"], layout: "Layout") -> tuple[list["Pair"], list["Pair"]]:
    """Split off about `val_share` of the images, in whole groups, which are chosen by a hash of their names.

    The choice depends on the names alone, so `evaluate` finds the same images again. When images are added, few of the
    old ones change sides. If all images are one group (ISIC_0001, ISIC_0002, ...), every image is a group of its own.

    Raises:
        DataError: there is only one image.
    """
    if len(pairs) == 1:
        raise DataError(
            f"{pairs[0].image.parent}: found 1 image, expected 2 or more to split some off to validate on; or add "
            f"val_images and val_{layout.masks}"
        )
    separator = "" if single_group(pairs, layout) else layout.group
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(group_of(pair.name, separator), []).append(pair)
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
        sides[group_of(pair.name, separator) in chosen].append(pair)
    return sides


def group_of(name: str, separator: str) -> str:
    """The part of a name that the views of one thing share: all before the last separator, or else the whole name."""
    return (name.rpartition(separator)[0] if separator else "") or name


def single_group(pairs: Sequence["Pair"], layout: "Layout") -> str | None:
    """Return the name of the group that all of several images belong to; None if there are more groups."""
    groups = {group_of(pair.name, layout.group) for pair in pairs}
    return groups.pop() if len(groups) == 1 and len(pairs) > 1 else None


def split_summary(train: Sequence["Pair"], val: Sequence["Pair"], layout: "Layout") -> str:
    """Describe in one line the images that `split_by_group` split off."""
    text = f"validation: {len(val)} of {len(train) + len(val)} images"
    if (prefix := single_group([*train, *val], layout)) is not None:
        return f"{text} split off, image by image: all names begin with {prefix + layout.group!r}"
    groups = {group_of(pair.name, layout.group) for pair in val}
    return f"{text}, {len(groups)} group{'s' * (len(groups) > 1)} split off"


def doubtful_split(train: Sequence["Pair"], val: Sequence["Pair"], layout: "Layout") -> str | None:
    """Describe a split by groups that may not be what the user wants; return None if nothing is odd.

    It is odd if the share differs from `val_share` by a factor of more than `MISSED`, or if a group is named by a word
    (cat_001, cat_002, ...): such a group is rather a kind of thing than the views of one, and none of it is trained on.
    """
    pairs = [*train, *val]
    if single_group(pairs, layout) is not None:
        return None
    groups: dict[str, list[Pair]] = {}
    for pair in val:
        groups.setdefault(group_of(pair.name, layout.group), []).append(pair)
    kept = [name for name, members in groups.items() if len(members) > 1]
    words = [name for name in kept if not any(character.isdigit() for character in name)]
    wanted = max(1.0, layout.val_share * len(pairs))
    missed = not wanted / MISSED <= len(val) <= wanted * MISSED
    if not missed and not words:
        return None
    names = [f"{name}{layout.group * (name in kept)}" for name in sorted(groups if missed else words)]
    listed = ", ".join(names[:NAMED_GROUPS])
    listed += f" and {len(names) - NAMED_GROUPS} more" * (len(names) > NAMED_GROUPS)
    share = f"{len(val)} of {len(pairs)} images where --val-share asks for {round(wanted)}: " if missed else ""
    return (
        f"validation has {share}all that are named {listed}, and training has none of these; if names with the same "
        f"beginning up to {layout.group!r} are not views of one thing, give --group ''"
    )
