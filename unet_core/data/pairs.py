"""Folders of images and masks: finding the pairs, splitting off a validation set, listing the faults.

Carvana's layout: `train_images/`, `train_masks/`, `val_images/`, `val_masks/` (or `train/`, `val/` for the images, as
Kaggle packs them); the mask of `X.jpg` is `X_mask.gif`, or another lossless file named `X_mask` or `X`.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.errors import DataError

LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")

LISTED_REASONS, LISTED_FILES = 6, 3
"""Maximum number of reasons that `refuse` lists, and of files for each reason."""

REASON, FILE, FOUND = 400, 100, 60
"""Maximum length of a reason, a file name and a finding, in characters."""

MESSAGE = re.compile(r"(?P<what>.*?)(?: \((?P<found>.*)\)(?P<advice>[^)]*))?", re.DOTALL)
"""The message of an `ImageError` after the file name: the fault, what was found, what to do."""

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

Measured = Split | Literal["test"]
"""A split that a model can be measured on; "test" has images only."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image file and the mask file of the same picture; an image without a mask can only be predicted.

    `fault` describes an image that has no mask, or more than one; `SampleDecoder.make` refuses such a pair.
    """

    image: Path
    mask: Path | None = None
    fault: str = ""

    @property
    def name(self) -> str:
        """The image's file name without its suffix."""
        return self.image.stem

    @property
    def files(self) -> tuple[Path, ...]:
        """The image file, and the mask file if there is one."""
        return (self.image,) if self.mask is None else (self.image, self.mask)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of the mask folders (SPLIT_`masks`), and how to split off a validation set if no folder holds one.

    About `val_share` of the images is split off. Images whose names agree up to the last `group` stay together.
    """

    masks: str = "masks"
    val_share: float = 0.1
    group: str = "_"


def find_pairs(data: str | os.PathLike[str], split: Split, layout: Layout | None = None) -> list[Pair]:
    """Pair every image of `split` in the data folder with its mask, sorted by name.

    If there is no validation folder, `split` is a part of the training images, as `find_splits` makes it. An image that
    has no mask, has several masks, or shares its name or mask with another image becomes a pair with a `fault`.

    Raises:
        DataError: a folder is missing or empty.
    """
    train, val = find_splits(data, layout, (split,) if has_validation(data) else SPLITS)
    return train if split == "train" else val


def find_splits(
    data: str | os.PathLike[str], layout: Layout | None = None, wanted: Sequence[Split] = SPLITS
) -> tuple[list[Pair], list[Pair]]:
    """Find training and validation pairs, sorted by name; if there is no validation folder, split them by group.

    Raises:
        DataError: a folder is missing or empty, there is only one group, or validation masks have no images.
    """
    layout = layout or Layout()
    split_up = not has_validation(data)
    if split_up and (lonely := Path(data) / f"val_{layout.masks}").is_dir():
        raise DataError(f"{lonely}: has no val_images beside it; add them, or take the folder away to split off a part")
    found: dict[Split, list[Pair]] = {"train": [], "val": []}
    for split in ("train",) if split_up else wanted:
        found[split] = pair_up(data, split, layout.masks)
    return split_by_group(found["train"], layout) if split_up else (found["train"], found["val"])


def pairs_to_measure(data: Path, split: Measured, layout: Layout) -> list[Pair]:
    """Find the pairs of a split, or the images in the split "test", which has no masks.

    Raises:
        DataError: see `find_splits`; or there are no test images.
    """
    from runtime.image import list_images

    if split != "test":
        return find_splits(data, layout, (split,))[split == "val"]
    folder = image_folder(data, split)
    images = list_images(folder) if folder.is_dir() else []
    if not images:
        raise DataError(f"{folder}: no images in this folder; expected .jpg or .png files to predict")
    return [Pair(image=path) for path in images]


def surplus_masks(
    data: str | os.PathLike[str], layout: Layout | None = None, wanted: Sequence[Split] = SPLITS
) -> str | None:
    """Describe masks that belong to no image, since images may be missing; return None if there are none.

    Raises:
        DataError: see `find_pairs`.
    """
    from runtime.image import list_images

    surplus: list[Path] = []
    for split in wanted if has_validation(data) else SPLITS[:1]:
        images, masks = split_folders(data, split, (layout or Layout()).masks)
        names = {path.stem for path in list_images(images)}
        surplus += [path for path in list_images(masks) if not names & {path.stem, path.stem.removesuffix("_mask")}]
    if not surplus:
        return None
    count = f"{len(surplus)} masks have" if len(surplus) > 1 else "1 mask has"
    return f"{data}: {count} no image of the same name: {first_files(map(short_name, surplus))}"


def shared_images(train: Sequence[Pair], val: Sequence[Pair]) -> str | None:
    """Describe validation images that are also trained on, by name and size; return None if there are none."""
    seen = {(pair.image.name, pair.image.stat().st_size) for pair in train}
    shared = [pair.image for pair in val if (pair.image.name, pair.image.stat().st_size) in seen]
    if not shared:
        return None
    count = f"{len(shared)} images are" if len(shared) > 1 else "1 image is"
    return f"{count} both trained and validated on, so the metrics are too good: {first_files(map(short_name, shared))}"


def image_folder(data: str | os.PathLike[str], split: str) -> Path:
    """The folder of a split's images: `SPLIT_images`, or `SPLIT` if only that exists."""
    named, short = Path(data) / f"{split}_images", Path(data) / split
    return short if short.is_dir() and not named.is_dir() else named


def has_validation(data: str | os.PathLike[str]) -> bool:
    """Return True if the data folder has a folder of validation images."""
    return image_folder(data, "val").is_dir()


def split_by_group(pairs: Sequence[Pair], layout: Layout) -> tuple[list[Pair], list[Pair]]:
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


def split_folders(data: str | os.PathLike[str], split: Split, kind: str) -> tuple[Path, Path]:
    """The folders of a split's images and masks.

    Raises:
        DataError: one of them does not exist, or both are the same folder.
    """
    images, masks = image_folder(data, split), Path(data) / f"{split}_{kind}"
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; expected train_images and train_{kind} in {data}, and val_images and "
                f"val_{kind} unless a part is to be split off"
            )
    if images.samefile(masks):
        raise DataError(f"{masks}: holds the images, expected masks in a folder of their own; give another --masks")
    return images, masks


def pair_up(data: str | os.PathLike[str], split: Split, kind: str) -> list[Pair]:
    """Pair the images in a split's folder with the masks in SPLIT_`kind`, sorted by name.

    Raises:
        DataError: a folder is missing or empty.
    """
    from runtime.image import list_images  # loads OpenCV and Pillow, which --help must not need

    images, masks = split_folders(data, split, kind)
    sources = list_images(images)
    if not sources:
        raise DataError(f"{images}: no images in this folder; expected .jpg or .png files")
    found: dict[str, list[Path]] = {}
    for path in list_images(masks):
        found.setdefault(path.stem, []).append(path)
    names = Counter(path.stem for path in sources)
    pairs = []
    for source in sources:
        candidates = [*found.get(f"{source.stem}_mask", ()), *found.get(source.stem, ())]
        lossless = [path for path in candidates if path.suffix.lower() not in LOSSY_SUFFIXES]
        expected = f"expected NAME_mask.gif or NAME.png in {masks}"
        if names[source.stem] > 1:
            fault = "has the same name as another image"
        elif len(lossless) > 1:
            fault = f"has several masks ({', '.join(path.name for path in lossless)}); leave one of them"
        elif not lossless and candidates:
            fault = f"has a mask in a lossy format ({candidates[0].suffix}), which cannot hold labels; {expected}"
        elif not lossless:
            fault = f"has no mask, {expected}"
        else:
            fault = ""
        pairs.append(Pair(image=source, mask=None if fault else lossless[0], fault=fault))
    # If masks lie among the images, X and X_mask find the same mask, and the mask would be trained on.
    uses = Counter(pair.mask for pair in pairs)
    return [
        Pair(image=pair.image, fault=f"shares its mask with another image ({pair.mask.name})")
        if pair.mask and uses[pair.mask] > 1
        else pair
        for pair in pairs
    ]


def refuse(faults: Sequence[tuple[Pair, str]], total: int) -> None:
    """Raise an error of one bounded line if there are faults: each reason once, followed by its first files.

    A fault is a pair and the message of its `ImageError`. A finding that is the same in all files is named once.

    Raises:
        DataError: there are faults.
    """
    if not faults:
        return
    reasons: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for pair, message in faults:
        path = next((path for path in pair.files if message.startswith(f"{path}: ")), pair.image)
        text = message.removeprefix(f"{path}: ").replace(f": {str(path)!r}", "").replace("; ", ", ")
        parts = MESSAGE.fullmatch(text)
        assert parts is not None  # it matches any text
        # Pillow counts missing bytes in inner brackets; without them, equal reasons read the same.
        found = re.sub(r" \([^()]*\)", "", parts["found"] or "")
        found = f" ({shortened(found, FOUND)})" if found else ""
        reasons.setdefault((parts["what"], parts["advice"] or ""), []).append((short_name(path), found))
    ordered = sorted(reasons.items(), key=lambda reason: -len(reason[1]))
    listed = []
    for (what, advice), files in ordered[:LISTED_REASONS]:
        findings = {found for _, found in files}
        same = findings.pop() if len(findings) == 1 else None
        reason = shortened(f"{what}{same or ''}{advice}", REASON)
        listed.append(f"{reason}: {first_files(name + ('' if same is not None else found) for name, found in files)}")
    more = sum(len(files) for _, files in ordered[LISTED_REASONS:])
    tail = f"; and {more} more for other reasons" if more else ""
    raise DataError(f"{len(faults)} of {total} pairs cannot be used, fix or remove them: {'; '.join(listed)}{tail}")


def first_files(names: Iterable[str]) -> str:
    """The first `LISTED_FILES` names, and the number of the others."""
    names = list(names)
    more = len(names) - LISTED_FILES
    return ", ".join(names[:LISTED_FILES]) + (f" and {more} more" if more > 0 else "")


def short_name(path: Path) -> str:
    """The name of a file and of its folder."""
    return shortened(f"{path.parent.name}/{path.name}", FILE)


def shortened(text: str, length: int) -> str:
    """The text, or its beginning and "..." if it is longer than `length` characters."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def fingerprint(train: Sequence[Pair], val: Sequence[Pair]) -> str:
    """Identify the data of a run: numbers of pairs, and a hash over the names and sizes of their files."""
    digest = hashlib.sha256()
    for path in (path for pair in (*train, *val) for path in pair.files):
        digest.update(os.fsencode(path.name) + f"\0{path.stat().st_size}\n".encode())
    return f"{len(train)} training and {len(val)} validation pairs, sha256 {digest.hexdigest()}"
