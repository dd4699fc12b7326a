"""Folders of images and masks: finding the pairs, splitting off a validation set, naming what is wrong.

Carvana's layout: `train_images/`, `train_masks/`, `val_images/`, `val_masks/` (or `train/`, `val/` for the images, as
Kaggle packs them); the mask of `X.jpg` is `X_mask.gif`, or another lossless file named `X_mask` or `X`.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.errors import DataError
from runtime.image import list_images
from unet_core.config import TrainConfig

MASK_SUFFIXES = (".gif", ".png", ".bmp", ".tif", ".tiff")
LISTED_OFFENDERS = 10

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image file and the mask file of the same picture; without a mask it can only be predicted."""

    image: Path
    mask: Path | None = None

    @property
    def name(self) -> str:
        """The image's name without suffix."""
        return self.image.stem

    @property
    def files(self) -> tuple[Path, ...]:
        """Image and mask, as far as there are both."""
        return (self.image,) if self.mask is None else (self.image, self.mask)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where in a data folder the pairs are, and how a validation set is split off where it has no folder."""

    masks: str = TrainConfig.masks
    val_share: float = TrainConfig.val_share
    group: str = TrainConfig.group


def find_pairs(data: str | os.PathLike[str], split: Split, layout: Layout | None = None) -> list[Pair]:
    """Pair every image of `split` under the data folder with its mask, sorted by name.

    Without a folder to validate on, `split` is a part of the training images, as `find_splits` makes it.

    Raises:
        DataError: a folder is missing or empty, an image has no mask or more than one, or two images share a name or a
            mask.
    """
    train, val = find_splits(data, layout, (split,) if has_validation(data) else SPLITS)
    return train if split == "train" else val


def find_splits(
    data: str | os.PathLike[str], layout: Layout | None = None, wanted: Sequence[Split] = SPLITS
) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs, sorted by name; without a folder to validate on, they are split by group.

    Raises:
        DataError: as `find_pairs`, for both at once; or there is only one group, or masks to validate on without
            images.
    """
    layout = layout or Layout()
    split_up = not has_validation(data)
    if split_up and (lonely := Path(data) / f"val_{layout.masks}").is_dir():
        raise DataError(f"{lonely}: has no val_images beside it; add them, or take the folder away to split off a part")
    found: dict[Split, list[Pair]] = {"train": [], "val": []}
    offenders: list[str] = []
    for split in ("train",) if split_up else wanted:
        found[split], strange = _match(data, split, layout.masks)
        offenders += strange
    refuse(offenders, sum(map(len, found.values())) + len(offenders))
    return split_by_group(found["train"], layout) if split_up else (found["train"], found["val"])


def image_folder(data: str | os.PathLike[str], split: str) -> Path:
    """The folder of a split's images: `SPLIT_images`, or `SPLIT` where only that is there."""
    named, short = Path(data) / f"{split}_images", Path(data) / split
    return short if short.is_dir() and not named.is_dir() else named


def has_validation(data: str | os.PathLike[str]) -> bool:
    """Whether a data folder has images of its own to validate on."""
    return image_folder(data, "val").is_dir()


def split_by_group(pairs: Sequence[Pair], layout: Layout) -> tuple[list[Pair], list[Pair]]:
    """Split off about `val_share` of the images, whole groups only, chosen by a hash of their names.

    The choice depends on nothing but the names, so `evaluate` finds the same images again, and more images move few
    of the old ones to the other side.

    Raises:
        DataError: there is only one group.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(group_of(pair.name, layout.group), []).append(pair)
    if len(groups) < 2:
        raise DataError(_one_group(pairs, layout))
    order = sorted(groups, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    chosen: set[str] = set()
    count, wanted = 0, layout.val_share * len(pairs)
    for name in order:
        size = len(groups[name])
        # One that would overshoot by more than now is missing is passed over: a large group may come first.
        if count + size / 2 <= wanted and len(chosen) + 1 < len(groups):
            chosen.add(name)
            count += size
    chosen = chosen or {min(order, key=lambda name: len(groups[name]))}
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        sides[group_of(pair.name, layout.group) in chosen].append(pair)
    return sides


def _one_group(pairs: Sequence[Pair], layout: Layout) -> str:
    folder, add = pairs[0].image.parent, f"val_images and val_{layout.masks}"
    if len(pairs) == 1:
        return f"{folder}: found 1 image, expected 2 or more to split some off to validate on; or add {add}"
    return (
        f"{folder}: all {len(pairs)} images are one group ({group_of(pairs[0].name, layout.group)!r}, their names "
        f"before the last {layout.group!r}), so none can be split off to validate on; give another --group, or add "
        + add
    )


def group_of(name: str, separator: str) -> str:
    """What views of one thing share: the name before the last separator, or all of it where nothing is before."""
    return (name.rpartition(separator)[0] if separator else "") or name


def _folders(data: str | os.PathLike[str], split: Split, kind: str) -> tuple[Path, Path]:
    images, masks = image_folder(data, split), Path(data) / f"{split}_{kind}"
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; expected train_images and train_{kind} in {data}, and val_images and "
                f"val_{kind} unless a part is to be split off"
            )
    if images.samefile(masks):
        raise DataError(f"{masks}: is the folder of the images, expected masks in another one; give another --masks")
    return images, masks


def _match(data: str | os.PathLike[str], split: Split, kind: str) -> tuple[list[Pair], list[str]]:
    """The pairs of a split, and a line for every image that has no mask of its own."""
    images, masks = _folders(data, split, kind)
    sources = list_images(images)
    if not sources:
        raise DataError(f"{images}: no images in this folder; expected .jpg or .png files")
    found: dict[str, list[Path]] = {}
    for path in list_images(masks):
        found.setdefault(path.stem, []).append(path)
    names = Counter(path.stem for path in sources)
    pairs, offenders = [], []
    for source in sources:
        candidates = [*found.get(f"{source.stem}_mask", ()), *found.get(source.stem, ())]
        usable = [path for path in candidates if path.suffix.lower() in MASK_SUFFIXES]
        if names[source.stem] > 1:
            offenders.append(f"{source}: another image has the same name")
        elif len(usable) != 1:
            wanted = f"{masks / source.stem}_mask.gif or {source.stem}.png"
            offenders.append(f"{source}: found {_named(usable or candidates)}, expected {wanted}")
        else:
            pairs.append(Pair(image=source, mask=usable[0]))
    return _without_shared(pairs, offenders)


def _named(masks: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in masks)
    return f"the masks {names}" if len(masks) > 1 else names or "no mask"


def _without_shared(pairs: Sequence[Pair], offenders: Sequence[str]) -> tuple[list[Pair], list[str]]:
    """X and X_mask find the same mask where masks lie among the images, and would be trained on."""
    uses = Counter(pair.mask for pair in pairs)
    shared = [
        f"{pair.image}: found {pair.mask.name}, which is the mask of another image too"
        for pair in pairs
        if pair.mask and uses[pair.mask] > 1
    ]
    return [pair for pair in pairs if uses[pair.mask] == 1], [*offenders, *shared]


def refuse(offenders: Sequence[str], total: int) -> None:
    """Stop where any pair cannot be used, listing the first ones.

    Raises:
        DataError: there are offenders.
    """
    if offenders:
        listed = "; ".join(offenders[:LISTED_OFFENDERS])
        more = len(offenders) - LISTED_OFFENDERS
        tail = f"; and {more} more" if more > 0 else ""
        raise DataError(f"{len(offenders)} of {total} pairs cannot be used, mend or remove them: {listed}{tail}")


def fingerprint(train: Sequence[Pair], val: Sequence[Pair]) -> str:
    """What data a model saw: numbers of pairs, and a hash over their file names and sizes."""
    digest = hashlib.sha256()
    for path in (path for pair in (*train, *val) for path in pair.files):
        digest.update(os.fsencode(path.name) + f"\0{path.stat().st_size}\n".encode())
    return f"{len(train)} training and {len(val)} validation pairs, sha256 {digest.hexdigest()}"
