"""Writes a converted data set in the layout that training takes: images are linked, masks are PNG files."""

import csv
import io
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import ImageError, ImageWarning, OutputError, one_line
from runtime.image import image_size, load_image
from runtime.image_files.limits import Limits
from runtime.images.palette import PALETTE
from runtime.images.png import encode_palette_png, encode_png
from runtime.support.files import make_folder, reason_of
from runtime.support.locks import try_lock
from unet_core.conversion.samples import Sample, SourceData
from unet_core.data.faults import refuse
from unet_core.data.folders import SETTINGS
from unet_core.data.labels import IGNORED, Labels
from unet_core.data.pairs import Pair
from unet_core.data.stacks import number_of_pages

IGNORED_BY_ONE = 128
"""Value of pixels that do not count in masks of one class, between 0 and 255."""

LEFT_OUT = "left_out.csv"
"""File in the new folder that lists the samples that were left out, and why."""

LOCK = ".lock"

WITH_CHANNELS = (".tif", ".tiff", ".npy", ".npz")
"""Suffixes of files that may have more channels than RGB."""

NAME_LENGTH = 100
"""Maximum length of a name, in characters: file systems take 255 bytes."""


@dataclass(kw_only=True)
class Written:
    """Counts of what was written: images by split, how they came there; files left out, and why.

    `channels`: that of the first image, if it has too many to be read as RGB.
    """

    splits: Counter[str]
    ways: Counter[str]
    left_out: list[tuple[Path, str]]
    has_ignored: bool = False
    channels: int | None = None


def write_data_set(
    found: SourceData, out: Path, *, copy: bool, skip_bad: bool, limits: Limits, advance: Callable[..., None]
) -> Written:
    """Write the samples below `out`, which must not exist or be empty; it is there whole or not at all.

    Images are hard links where the file system allows, else symbolic links, else copies; with `copy`, always copies.
    With `skip_bad`, samples that cannot be used are left out.

    Raises:
        DataError: samples cannot be used; all reasons are named.
        OutputError: the folder exists and is not empty, another process writes it, or it cannot be written.
    """
    written = Written(splits=Counter(), ways=Counter(), left_out=[])
    names = output_names(found.samples)
    with whole_folder(out) as folder:
        for sample, name in zip(found.samples, names, strict=True):
            try:
                write_sample(sample, name, folder, found.classes, copy, limits, written)
            except ImageError as error:
                text, files = str(error), (sample.path, sample.mask)
                file = next((file for file in files if file and text.startswith(f"{file}: ")), sample.path)
                written.left_out.append((file, text.removeprefix(f"{file}: ")))
            advance(1)
        if written.left_out and (not skip_bad or not written.splits):
            refuse([(Pair(image=file), text) for file, text in written.left_out], len(found.samples))
        if written.left_out:
            (folder / LEFT_OUT).write_text(left_out_table(written.left_out), encoding="utf-8", errors="replace")
        (folder / SETTINGS).write_text(settings_text(found.classes, written), encoding="utf-8")
    return written


def write_sample(
    sample: Sample, name: str, folder: Path, classes: Sequence[str], copy: bool, limits: Limits, written: Written
) -> None:
    """Write one image and its mask; raises an `ImageError` if it cannot be used."""
    if sample.fault:
        raise ImageError(sample.fault)
    split = sample.split or "train"
    size = image_size_of(sample.image, limits)
    if isinstance(sample.image, Path) and (pages := number_of_pages(sample.image)) > 1:
        raise ImageError(f"has {pages} pages, expected one; put stacks into train_images and train_masks as they are")
    labels = None if sample.labels is None else sample.labels(size)
    if labels is not None and labels.shape != size:
        (height, width), (mask_height, mask_width) = size, labels.shape
        raise ImageError(f"differs in size from its mask ({width}x{height}, its mask is {mask_width}x{mask_height})")
    if not written.splits and isinstance(sample.image, Path):
        written.channels = channels_beyond_rgb(sample.image, limits)
    images, masks = folder / f"{split}_images", folder / f"{split}_masks"
    for part in (images, masks):
        part.mkdir(exist_ok=True)
    if isinstance(sample.image, Path):
        written.ways[place_image(sample.image, images / f"{name}{sample.image.suffix}", copy)] += 1
    else:
        (images / f"{name}{suffix_of(sample.image)}").write_bytes(sample.image)
        written.ways["copied"] += 1
    if labels is not None:
        written.has_ignored |= bool((labels == IGNORED).any())
        (masks / f"{name}.png").write_bytes(mask_file(labels, len(classes)))
    written.splits[split] += 1


def image_size_of(image: Path | bytes, limits: Limits) -> tuple[int, int]:
    """Return (height, width) of an image upright; raises an `ImageError` if it cannot be read."""
    if isinstance(image, Path):
        return image_size(image, limits)
    height, width = load_image(image, limits=limits).shape[:2]
    return height, width


def channels_beyond_rgb(image: Path, limits: Limits) -> int | None:
    """Return the number of channels of an image that can be read, but not as RGB; None for others."""
    if image.suffix.lower() not in WITH_CHANNELS:
        return None
    with warnings.catch_warnings(), suppress(ImageError):  # training tells
        warnings.simplefilter("ignore", ImageWarning)
        try:
            load_image(image, limits=limits)
        except ImageError:
            return int(load_image(image, "raw", limits=limits).shape[2])
    return None


def mask_file(labels: Labels, classes: int) -> bytes:
    """The PNG of labels: black, white and `IGNORED_BY_ONE` with one class, else a palette of indices."""
    if classes > 1:
        return encode_palette_png(labels, PALETTE)
    return encode_png(np.array([0, 255, *[IGNORED_BY_ONE] * 254], np.uint8)[labels])


def place_image(source: Path, target: Path, copy: bool) -> str:
    """Put an image at `target`; returns "linked" or "copied"."""
    real = Path(os.path.realpath(source))
    if not copy:
        with suppress(OSError, NotImplementedError):  # another disk, or a file system without links
            target.hardlink_to(real)
            return "linked"
        with suppress(OSError, NotImplementedError):
            target.symlink_to(real)
            return "linked"
    shutil.copyfile(real, target)
    return "copied"


def suffix_of(content: bytes) -> str:
    """The suffix of an image that an annotation file held."""
    return ".png" if content.startswith(b"\x89PNG") else ".jpg"


def output_names(samples: Sequence[Sample]) -> list[str]:
    """A name for each sample that no other one of its split has: that of its file, or else with its folders."""

    def unique(names: list[str]) -> bool:
        return max(Counter(zip((sample.split for sample in samples), names, strict=True)).values(), default=0) <= 1

    paths = [Path(sample.name.replace("\\", "/")) for sample in samples]
    plain = [file_name(path.stem if has_suffix(path) else path.name) for path in paths]
    if unique(plain):
        return plain
    long = [file_name("-".join([*path.parts[:-1], name])) for path, name in zip(paths, plain, strict=True)]
    return long if unique(long) else [f"{name}-{number}" for number, name in enumerate(plain, 1)]


def file_name(text: str) -> str:
    """The text without what is awkward in a file's name, at most `NAME_LENGTH` characters."""
    plain = "".join(letter if letter.isprintable() and letter not in "/\\:" else "-" for letter in text)
    return plain.strip(". -")[:NAME_LENGTH] or "image"


def has_suffix(path: Path) -> bool:
    """Return True if the end of a name after the last dot looks like the suffix of a file."""
    return 2 <= len(path.suffix) <= 5 and path.suffix[1:].isalnum() and not path.suffix[1:].isdigit()


def settings_text(classes: Sequence[str], written: Written) -> str:
    """The settings of training for these classes and what was written, as TOML."""
    names = json.dumps([*classes], ensure_ascii=False)
    text = f"# Settings of this data set: unet-train DATA --config DATA/{SETTINGS}\nclasses = {names}\n"
    if written.channels:
        text += f"channels = {written.channels}\n"
    if written.has_ignored:
        text += f"ignore_index = {IGNORED if len(classes) > 1 else IGNORED_BY_ONE}\n"
    return text


def left_out_table(left_out: Sequence[tuple[Path, str]]) -> str:
    """The samples that were left out, as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("image", "problem"))
    # "./" keeps spreadsheets from taking a name for a formula.
    table.writerows((file if file.is_absolute() else f"./{file}", one_line(problem)) for file, problem in left_out)
    return text.getvalue()


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside `out`; after the block, rename it to `out`. If the block raises, it is removed.

    What a killed process left there is removed, and what another process writes there is not touched.

    Raises:
        OutputError: `out` is not empty, another process writes it, or it cannot be written.
    """
    target = Path(os.path.abspath(out))  # noqa: PTH100 - `resolve` would follow links
    try:
        if target.is_file() or (target.is_dir() and any(target.iterdir())):
            raise OutputError(f"{out}: exists and is not empty; choose a new folder, or remove that one")
        make_folder(target.parent)
        unfinished = target.with_name(f".{target.name}.unfinished")
        if unfinished.is_symlink():
            raise OutputError(f"{unfinished}: is a link, expected a folder or nothing; remove it")
        unfinished.mkdir(exist_ok=True)
        descriptor = os.open(unfinished / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({reason_of(error)}); choose another place") from error
    try:
        if not try_lock(descriptor):
            raise OutputError(f"{out}: is being written by another process; wait for it, or choose another folder")
        try:
            for path in unfinished.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield unfinished
            with suppress(FileNotFoundError):
                target.rmdir()
            (unfinished / LOCK).unlink()
            unfinished.rename(target)
        except OSError as error:
            raise OutputError(
                f"{out}: cannot be written ({reason_of(error)}); free some space, or choose another place"
            ) from error
        finally:
            if unfinished.exists():
                shutil.rmtree(unfinished, ignore_errors=True)
    finally:
        os.close(descriptor)
