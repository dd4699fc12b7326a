"""Faults of a data set, listed in one line: pairs that cannot be used, surplus masks, images in both splits."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import DataError, one_line
from unet_core.data.names import first_files
from unet_core.data.pairs import SPLITS, Layout, Measured, Pair, Split, has_validation, image_folder, split_folders

LISTED_REASONS = 6
"""Maximum number of reasons that `refuse` lists."""

REASON, FILE, FOUND = 400, 100, 60
"""Maximum length of a reason, a file name and a finding, in characters."""

MESSAGE = re.compile(r"(?P<what>.*?)(?: \((?P<found>.*)\)(?P<advice>[^)]*))?", re.DOTALL)
"""The message of an `ImageError` after the file name: the fault, what was found, what to do."""


Fault = tuple[Pair, str]
"""A pair that cannot be used, and the message of its `ImageError`."""


def refuse(faults: Sequence[Fault], total: int, opening: str = "") -> None:
    """Raise an error of one bounded line if there are faults; `opening` begins it in place of their number.

    Raises:
        DataError: there are faults.
    """
    if faults:
        opening = opening or f"{len(faults)} of {total} pairs cannot be used, fix or remove them"
        raise DataError(f"{opening}: {listed(faults)}")


def listed(faults: Sequence[Fault]) -> str:
    """List faults in one bounded line: each reason once, followed by its first files.

    A finding that is the same in all files of a reason is named once.
    """
    reasons: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for pair, message in faults:
        path = next((path for path in pair.files if message.startswith(f"{pair.place(path)}: ")), pair.image)
        text = message.removeprefix(f"{pair.place(path)}: ").replace(f": {str(path)!r}", "").replace("; ", ", ")
        page = pair.place(path).removeprefix(str(path))
        match = MESSAGE.fullmatch(text)
        assert match is not None  # it matches any text
        # Pillow counts missing bytes in inner brackets; without them, equal reasons read the same.
        found = re.sub(r" \([^()]*\)", "", match["found"] or "")
        found = f" ({shortened(found, FOUND)})" if found else ""
        reasons.setdefault((match["what"], match["advice"] or ""), []).append((short_name(path) + page, found))
    ordered = sorted(reasons.items(), key=lambda reason: -len(reason[1]))
    parts = []
    for (what, advice), files in ordered[:LISTED_REASONS]:
        findings = {found for _, found in files}
        same = findings.pop() if len(findings) == 1 else None
        reason = shortened(f"{what}{same or ''}{advice}", REASON)
        parts.append(f"{reason}: {first_files(name + ('' if same is not None else found) for name, found in files)}")
    more = sum(len(files) for _, files in ordered[LISTED_REASONS:])
    tail = f"; and {more} more for other reasons" if more else ""
    return f"{'; '.join(parts)}{tail}"


def unpaired(pairs: Sequence[Pair]) -> dict[int, str]:
    """Return the images that have no mask, several, or another image's: the message by the index of the pair."""
    return {index: f"{pair.image}: {pair.fault}" for index, pair in enumerate(pairs) if pair.fault}


def problems_table(faults: Sequence[Fault], others: Sequence[tuple[Path, str]], data: Path) -> str:
    """Return all faults as CSV: the file, below `data`, and its problem; `others` are files and theirs."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("file", "problem"))
    for pair, message in faults:
        places = {pair.place(file): file for file in pair.files}
        place = next((place for place in places if message.startswith(f"{place}: ")), pair.place(pair.image))
        table.writerow((below(Path(place), data), one_line(message.removeprefix(f"{place}: "))))
    table.writerows((below(file, data), problem) for file, problem in others)
    return text.getvalue().encode(errors="replace").decode()


def below(path: Path, data: Path) -> str:
    """The path below the data folder, with "./" before it, so that no spreadsheet takes it for a formula."""
    return f"./{path.relative_to(data)}" if path.is_relative_to(data) else str(path)


def surplus_masks(
    data: str | os.PathLike[str], layout: Layout | None = None, wanted: Sequence[Split] = SPLITS
) -> str | None:
    """Describe masks that belong to no image, since images may be missing; return None if there are none.

    Raises:
        DataError: see `find_pairs`.
    """
    surplus = surplus_mask_files(data, layout, wanted)
    if not surplus:
        return None
    count = f"{len(surplus)} masks have" if len(surplus) > 1 else "1 mask has"
    return f"{data}: {count} no image of the same name: {first_files(map(short_name, surplus))}"


def surplus_mask_files(
    data: str | os.PathLike[str], layout: Layout | None = None, wanted: Sequence[Split] = SPLITS
) -> list[Path]:
    """List the masks that belong to no image; raises as `surplus_masks`."""
    from runtime.image import list_images

    surplus: list[Path] = []
    layout = layout or Layout()
    for split in wanted if has_validation(data) else SPLITS[:1]:
        images, masks = split_folders(data, split, layout.masks)
        names = {path.stem for path in list_images(images, arrays=layout.arrays)}
        surplus += [path for path in list_images(masks) if not names & {path.stem, path.stem.removesuffix("_mask")}]
    return surplus


def files_left_out(
    data: str | os.PathLike[str], layout: Layout | None = None, wanted: Sequence[Measured] = SPLITS
) -> str | None:
    """Describe the files beside the images and masks that are no images; return None if there are none.

    Raises:
        DataError: see `find_pairs`.
    """
    from runtime.image_files.folders import left_out_note, list_images

    left_out: Counter[str] = Counter()
    layout = layout or Layout()
    for split in wanted if has_validation(data) or wanted == ("test",) else SPLITS[:1]:
        images, *masks = [image_folder(data, split)] if split == "test" else split_folders(data, split, layout.masks)
        list_images(images, left_out, arrays=layout.arrays)
        for folder in masks:
            list_images(folder, left_out)
    note = left_out_note(left_out)
    return f"{data}: {note}" if note else None


def shared_images(train: Sequence[Pair], val: Sequence[Pair]) -> str | None:
    """Describe validation images that are also trained on, by name and size; return None if there are none."""
    shared = shared_image_files(train, val)
    if not shared:
        return None
    count = f"{len(shared)} images are" if len(shared) > 1 else "1 image is"
    return f"{count} both trained and validated on, so the metrics are too good: {first_files(map(short_name, shared))}"


def shared_image_files(train: Sequence[Pair], val: Sequence[Pair]) -> list[Path]:
    """List the validation images of which training has one of the same name, size in bytes and page."""
    seen = {(pair.image.name, pair.image.stat().st_size, pair.page) for pair in train}
    return [pair.image for pair in val if (pair.image.name, pair.image.stat().st_size, pair.page) in seen]


def short_name(path: Path) -> str:
    """The name of a file and of its folder."""
    return shortened(f"{path.parent.name}/{path.name}", FILE)


def shortened(text: str, length: int) -> str:
    """The text, or its beginning and "..." if it is longer than `length` characters."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
