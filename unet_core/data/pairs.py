"""Folders of images and masks: finding the pairs of each split.

Carvana's layout: `train_images/`, `train_masks/`, `val_images/`, `val_masks/` (or `train/`, `val/` for the images, as
Kaggle packs them, or `train/train/`, as it unpacks). Also `train/images/` and `train/masks/`; `images/train/` and
`masks/train/`; and one pair `images/` (or `imgs/`) and `masks/`, of which a part is split off for validation.
The mask of `X.jpg` is `X_mask.gif`, or another lossless file named `X_mask` or `X`.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from runtime.errors import DataError
from runtime.image_files.limits import LIMITS, Limits
from unet_core.data.folders import IMAGES as IMAGES
from unet_core.data.folders import SPLITS as SPLITS
from unet_core.data.folders import Split as Split
from unet_core.data.folders import has_validation as has_validation
from unet_core.data.folders import image_folder as image_folder
from unet_core.data.folders import mask_folder as mask_folder
from unet_core.data.mask_values import MaskValues, labels_from
from unet_core.data.names import command_to_convert, first_files, is_mask, key_of
from unet_core.data.validation_split import split_by_group

if TYPE_CHECKING:  # loads NumPy, which --help must not need
    from unet_core.data.labels import Labels, LabelSpec

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
LOSSY_SUFFIXES = (*JPEG_SUFFIXES, ".webp", ".heic", ".heif", ".hif", ".avif")

Measured = Split | Literal["test"]
"""A split that a model can be measured on; "test" has images only."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image file and the mask file of the same picture; an image without a mask can only be predicted.

    `fault` describes an image that has no mask, or more than one; `SampleDecoder.make` refuses such a pair. `page` is
    the page of both files, counted from 0, if these are stacks. `values` are the settings by which the mask's values
    become labels.
    """

    image: Path
    mask: Path | None = None
    fault: str = ""
    page: int | None = None
    values: MaskValues = field(default=MaskValues())

    @property
    def name(self) -> str:
        """The image's file name without its suffix, and the number of its page if there are several."""
        return self.image.stem if self.page is None else f"{self.image.stem}_{self.page + 1:03}"

    @property
    def file_name(self) -> str:
        """The image's file name, before whose suffix is the number of its page if there are several."""
        return f"{self.name}{self.image.suffix}"

    @property
    def files(self) -> tuple[Path, ...]:
        """The image file, and the mask file if there is one."""
        return (self.image,) if self.mask is None else (self.image, self.mask)

    @property
    def label(self) -> str:
        """The image's file name, and the page if there are several."""
        return self.place(self.image).removeprefix(f"{self.image.parent}{os.sep}")

    def place(self, path: Path) -> str:
        """The name of one of the files in messages, with the page if there are several."""
        return str(path) if self.page is None else f"{path}, page {self.page + 1}"

    def source(self, path: Path, limits: Limits = LIMITS) -> Path | IO[bytes]:
        """One of the files as it is decoded: itself, or the page of it, in memory.

        Raises:
            ImageError: the page is missing or damaged, or exceeds the limits.
        """
        if self.page is None:
            return path
        from runtime.image_files.tiff_pages import open_page

        return open_page(path, self.page, limits)

    def truth(self, spec: "LabelSpec", limits: Limits = LIMITS) -> "Labels":
        """Read the mask as labels, uint8 [height, width]; see `load_truth` and `load_one_hot`.

        Raises:
            ImageError: it cannot be read, has other values than `spec` says, or pages that are no classes.
        """
        from unet_core.data.stacks import load_one_hot, number_of_pages

        assert self.mask is not None
        if self.page is None and (pages := number_of_pages(self.mask)) > 1:
            return load_one_hot(self.mask, pages, len(spec.classes), limits)
        return labels_from(self.source(self.mask, limits), spec, self.values, limits)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of the mask folders (SPLIT_`masks`), how to split off a validation set if no folder holds one, mask values.

    `class_offset` is the value of the first of several classes in the masks.
    About `val_share` of the images is split off. Images whose names agree up to the last `group` stay together.
    `mask_threshold` and `colours` are those of `MaskValues`. With `arrays`, images may be NumPy's files, too.
    """

    masks: str = "masks"
    class_offset: int = 0
    val_share: float = 0.1
    group: str = "_"
    mask_threshold: int | None = None
    colours: tuple[str, ...] = ()
    arrays: bool = False

    @property
    def values(self) -> MaskValues:
        """The settings by which the values of masks become labels."""
        return MaskValues(threshold=self.mask_threshold, colours=self.colours)


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
        found[split] = pair_up(data, split, layout)
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
    images = list_images(folder, arrays=layout.arrays) if folder.is_dir() else []
    if not images:
        raise DataError(f"{folder}: no images in this folder; expected .jpg or .png files to predict")
    return [Pair(image=path) for path in images]


def split_folders(data: str | os.PathLike[str], split: Split, kind: str) -> tuple[Path, Path]:
    """The folders of a split's images and masks.

    Raises:
        DataError: one of them does not exist, or both are the same folder.
    """
    images = image_folder(data, split)
    masks = mask_folder(images, data, split, kind)
    for folder in (images, masks):
        if not folder.is_dir():
            from unet_core.data.other_layouts import refuse_layout  # loads what --help must not need

            refuse_layout(Path(data), folder, kind)
    if images.samefile(masks):
        raise DataError(f"{masks}: holds the images, expected masks in a folder of their own; give another --masks")
    return images, masks


class MaskFiles:
    """The masks in a folder, found by the names of images; `lossy` takes those that are not stored exactly, too."""

    def __init__(self, data: Path, folder: Path, images: Sequence[Path], *, lossy: bool) -> None:
        from runtime.image_files.folders import left_out_note, list_images

        left_out: Counter[str] = Counter()
        self.data, self.lossy = data, lossy
        self.by_name: dict[str, list[Path]] = {}
        self.by_key: dict[str, list[Path]] = {}
        for path in list_images(folder, left_out):
            self.by_name.setdefault(path.stem, []).append(path)
            if is_mask(path, data):  # otherwise `unet-data convert` would not know it
                self.by_key.setdefault(key_of(path.stem), []).append(path)
        self.expected = f"expected NAME_mask.gif or NAME.png in {folder}"
        if not self.by_name:
            self.expected += f", found {left_out_note(left_out, 'not read') or 'no images there'}"
        elif not any(self.named(image) for image in images):
            names = [path.name for paths in self.by_name.values() for path in paths]
            self.expected += f" (found {first_files(names)})"

    def named(self, image: Path) -> list[Path]:
        """List the files that have the name of an image's mask."""
        return [*self.by_name.get(f"{image.stem}_mask", ()), *self.by_name.get(image.stem, ())]

    def of(self, image: Path) -> tuple[Path | None, str]:
        """Return the mask of an image, or None and why there is none, or not one."""
        named = self.named(image)
        found = [path for path in named if self.lossy or path.suffix.lower() not in LOSSY_SUFFIXES]
        similar = self.by_key.get(key_of(image.stem), ())
        if len(found) == 1:
            return found[0], ""
        if found:
            return None, f"has several masks ({', '.join(path.name for path in found)}); leave one of them"
        if named:
            suffix = named[0].suffix
            return None, f"has a mask in a lossy format ({suffix}), which cannot hold labels; {self.expected}"
        if len(similar) == 1:
            command = command_to_convert(self.data)
            return None, f"has no mask of its name, but of a similar one ({similar[0].name}); to pair these: {command}"
        return None, f"has no mask, {self.expected}"


def pair_up(data: str | os.PathLike[str], split: Split, layout: Layout) -> list[Pair]:
    """Pair the images in a split's folder with the masks in its mask folder, sorted by name.

    Masks in a lossy format are taken only if a threshold makes labels of them.

    Raises:
        DataError: a folder is missing or empty.
    """
    from runtime.image_files.folders import left_out_note, list_images  # loads what --help must not need
    from unet_core.data.stacks import expand

    images, masks = split_folders(data, split, layout.masks)
    left_out: Counter[str] = Counter()
    sources = list_images(images, left_out, arrays=layout.arrays)
    if not sources:
        note = left_out_note(left_out, "not read")
        raise DataError(
            f"{images}: no images in this folder; expected .jpg or .png files" + (f", found {note}" if note else "")
        )
    files = MaskFiles(Path(data), masks, sources, lossy=layout.mask_threshold is not None)
    names = Counter(path.stem for path in sources)
    pairs = []
    for source in sources:
        mask, fault = files.of(source)
        if names[source.stem] > 1:
            fault = "has the same name as another image"
        pairs += expand(Pair(image=source, mask=None if fault else mask, fault=fault, values=layout.values))
    # If masks lie among the images, X and X_mask find the same mask, and the mask would be trained on.
    uses = Counter((pair.mask, pair.page) for pair in pairs)
    return [
        Pair(image=pair.image, fault=f"shares its mask with another image ({pair.mask.name})")
        if pair.mask and uses[pair.mask, pair.page] > 1
        else pair
        for pair in pairs
    ]


def fingerprint(train: Sequence[Pair], val: Sequence[Pair]) -> str:
    """Identify the data of a run: numbers of pairs, and a hash over the names and sizes of their files."""
    digest = hashlib.sha256()
    for pair in (*train, *val):
        for path in pair.files:
            name = path.name if pair.page is None else f"{path.name}\0{pair.page}"
            digest.update(os.fsencode(name) + f"\0{path.stat().st_size}\n".encode())
    return f"{len(train)} training and {len(val)} validation pairs, sha256 {digest.hexdigest()}"
