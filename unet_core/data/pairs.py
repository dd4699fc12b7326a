"""Folders of images and masks: finding the pairs, splitting off a validation set, naming what is wrong.

Carvana's layout: `train_images/`, `train_masks/`, `val_images/`, `val_masks/` (or `train/`, `val/` for the images, as
Kaggle packs them); the mask of `X.jpg` is `X_mask.gif`, or another lossless file named `X_mask` or `X`.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.errors import DataError
from runtime.image import list_images

LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")

LISTED_REASONS, LISTED_FILES = 6, 3
"""Of a refusal: reasons, and files of each."""

REASON, FILE, FOUND = 400, 100, 60
"""Characters at most of a reason, a file's name, and what was found in it."""

MESSAGE = re.compile(r"(?P<what>.*?)(?: \((?P<found>.*)\)(?P<advice>[^)]*))?", re.DOTALL)
"""How an `ImageError` goes on after the file: what is wrong, what was found, what to do."""

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image file and the mask file of the same picture; without a mask it can only be predicted.

    `fault`: what is wrong with the image, where none or several masks are its own; `SampleDecoder.make` refuses it.
    """

    image: Path
    mask: Path | None = None
    fault: str = ""

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

    masks: str = "masks"
    val_share: float = 0.1
    group: str = "_"


def find_pairs(data: str | os.PathLike[str], split: Split, layout: Layout | None = None) -> list[Pair]:
    """Pair every image of `split` under the data folder with its mask, sorted by name.

    Without a folder to validate on, `split` is a part of the training images, as `find_splits` makes it. An image that
    has no mask, more than one, or shares its name or mask with another, is a pair with a `fault`.

    Raises:
        DataError: a folder is missing or empty.
    """
    train, val = find_splits(data, layout, (split,) if has_validation(data) else SPLITS)
    return train if split == "train" else val


def find_splits(
    data: str | os.PathLike[str], layout: Layout | None = None, wanted: Sequence[Split] = SPLITS
) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs, sorted by name; without a folder to validate on, they are split by group.

    Raises:
        DataError: as `find_pairs`; or there is only one group, or masks to validate on without images.
    """
    layout = layout or Layout()
    split_up = not has_validation(data)
    if split_up and (lonely := Path(data) / f"val_{layout.masks}").is_dir():
        raise DataError(f"{lonely}: has no val_images beside it; add them, or take the folder away to split off a part")
    found: dict[Split, list[Pair]] = {"train": [], "val": []}
    for split in ("train",) if split_up else wanted:
        found[split] = _match(data, split, layout.masks)
    return split_by_group(found["train"], layout) if split_up else (found["train"], found["val"])


def surplus_masks(
    data: str | os.PathLike[str], layout: Layout | None = None, wanted: Sequence[Split] = SPLITS
) -> str | None:
    """A line to note on masks that are no image's, since images may be missing; None where there are none.

    Raises:
        DataError: as `find_pairs`.
    """
    surplus: list[Path] = []
    for split in wanted if has_validation(data) else SPLITS[:1]:
        images, masks = _folders(data, split, (layout or Layout()).masks)
        names = {path.stem for path in list_images(images)}
        surplus += [path for path in list_images(masks) if not names & {path.stem, path.stem.removesuffix("_mask")}]
    if not surplus:
        return None
    count = f"{len(surplus)} masks have" if len(surplus) > 1 else "1 mask has"
    return f"{data}: {count} no image of the same name: {_listed([_short(path) for path in surplus])}"


def shared_images(train: Sequence[Pair], val: Sequence[Pair]) -> str | None:
    """A line to note on validation images that are training images too, by name and size; None where there are none."""
    seen = {(pair.image.name, pair.image.stat().st_size) for pair in train}
    shared = [pair.image for pair in val if (pair.image.name, pair.image.stat().st_size) in seen]
    if not shared:
        return None
    count = f"{len(shared)} images are" if len(shared) > 1 else "1 image is"
    return (
        f"{count} both trained and validated on, so the figures flatter: {_listed([_short(path) for path in shared])}"
    )


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


def _match(data: str | os.PathLike[str], split: Split, kind: str) -> list[Pair]:
    images, masks = _folders(data, split, kind)
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
        if names[source.stem] > 1:
            pairs.append(Pair(image=source, fault="has the name of another image"))
        elif len(lossless) != 1:
            pairs.append(Pair(image=source, fault=_without_mask(candidates, lossless, masks)))
        else:
            pairs.append(Pair(image=source, mask=lossless[0]))
    # X and X_mask find the same mask where masks lie among the images, and would be trained on.
    uses = Counter(pair.mask for pair in pairs)
    return [
        Pair(image=pair.image, fault=f"has the mask of another image too ({pair.mask.name})")
        if pair.mask and uses[pair.mask] > 1
        else pair
        for pair in pairs
    ]


def _without_mask(candidates: Sequence[Path], lossless: Sequence[Path], folder: Path) -> str:
    if lossless:
        return f"has several masks ({', '.join(path.name for path in lossless)}); leave one of them"
    expected = f"expected NAME_mask.gif or NAME.png in {folder}"
    if candidates:
        return f"has a mask of a lossy kind ({candidates[0].suffix}), which cannot hold labels; {expected}"
    return f"has no mask, {expected}"


def refuse(faults: Sequence[tuple[Pair, str]], total: int) -> None:
    """Stop where any pair cannot be used, with one line of bounded length: each reason once, then its first files.

    A fault is a pair and the message of its `ImageError`. What was found stands once where it is the same in all files.

    Raises:
        DataError: there are faults.
    """
    if not faults:
        return
    reasons: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for pair, message in faults:
        what, found, advice, file = _parts(pair, message)
        reasons.setdefault((what, advice), []).append((file, found))
    ordered = sorted(reasons.items(), key=lambda reason: -len(reason[1]))
    listed = "; ".join(_reason(*reason, files) for reason, files in ordered[:LISTED_REASONS])
    more = sum(len(files) for _, files in ordered[LISTED_REASONS:])
    tail = f"; and {more} more for other reasons" if more else ""
    raise DataError(f"{len(faults)} of {total} pairs cannot be used, mend or remove them: {listed}{tail}")


def _parts(pair: Pair, message: str) -> tuple[str, str, str, str]:
    """What is wrong, what was found, what to do, and in which file."""
    path = next((path for path in pair.files if message.startswith(f"{path}: ")), pair.image)
    text = message.removeprefix(f"{path}: ").replace(f": {str(path)!r}", "").replace("; ", ", ")
    parts = MESSAGE.fullmatch(text)
    assert parts is not None  # any text does
    # Pillow counts missing bytes in brackets within; without them the same reason reads the same.
    found = re.sub(r" \([^()]*\)", "", parts["found"] or "")
    return parts["what"], found, parts["advice"] or "", _short(path)


def _reason(what: str, advice: str, files: Sequence[tuple[str, str]]) -> str:
    """A reason and the first of its files."""
    findings = {_bracketed(found) for _, found in files}
    if len(findings) == 1:
        return f"{_cut(what + findings.pop() + advice, REASON)}: {_listed([name for name, _ in files])}"
    return f"{_cut(what + advice, REASON)}: {_listed([name + _bracketed(found) for name, found in files])}"


def _bracketed(found: str) -> str:
    return f" ({_cut(found, FOUND)})" if found else ""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - LISTED_FILES
    return ", ".join(names[:LISTED_FILES]) + (f" and {more} more" if more > 0 else "")


def _short(path: Path) -> str:
    return _cut(f"{path.parent.name}/{path.name}", FILE)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def fingerprint(train: Sequence[Pair], val: Sequence[Pair]) -> str:
    """What data a model saw: numbers of pairs, and a hash over their file names and sizes."""
    digest = hashlib.sha256()
    for path in (path for pair in (*train, *val) for path in pair.files):
        digest.update(os.fsencode(path.name) + f"\0{path.stat().st_size}\n".encode())
    return f"{len(train)} training and {len(val)} validation pairs, sha256 {digest.hexdigest()}"
