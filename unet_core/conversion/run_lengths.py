"""Tables of run lengths: Carvana's train_masks.csv and those of Kaggle's other competitions."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from runtime.errors import ConfigError, DataError, ImageError
from runtime.rle import decode
from unet_core.conversion.samples import ConvertOptions, ImageIndex, Sample, SourceData, chosen_classes
from unet_core.data.faults import short_name
from unet_core.data.labels import Labels
from unet_core.data.names import first_files, split_of

HEADERS = {
    ("img", "rle_mask"): False,
    ("id", "rle_mask"): True,
    ("imageid", "classid", "encodedpixels"): True,
    ("imageid", "encodedpixels"): True,
    ("image_label", "encodedpixels"): True,
    ("imageid_classid", "encodedpixels"): True,
}
"""Headers of the tables in lower case, in any order; True if runs go down the columns. Carvana's go along the rows."""

LONGEST_HEADER = 2000
"""Maximum length of a header, in characters; a table without one may begin with run lengths of megabytes."""

EMPTY = {"", "nan", "-1"}
"""Cells of an image without foreground."""


def table_of(source: Path) -> Path | None:
    """The table of a source: the file itself, or one of the folder whose header is known, first those of training."""
    candidates = [source] if source.is_file() else []
    if source.is_dir():
        tables = [path for path in source.glob("*.csv") if "submission" not in path.name.lower()]
        candidates = sorted(tables, key=lambda path: (split_of(path.stem) != "train", path.name))
    return next((path for path in candidates if path.suffix.lower() == ".csv" and header_of(path)), None)


def header_of(path: Path) -> tuple[str, ...] | None:
    """The known header of a table, in lower case and in the order of `HEADERS`; None if it has another, or is none."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            names = {name.strip().lower() for name in next(csv.reader([file.readline(LONGEST_HEADER)]), [])}
    except (OSError, csv.Error):
        return None
    return next((header for header in HEADERS if set(header) <= names), None)


def rows_of(path: Path, header: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """The image, the class ("" without one) and the run lengths of each row."""
    csv.field_size_limit(2**31 - 1)
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file)
        names = [name.strip().lower() for name in next(rows)]
        places = [names.index(name) for name in header]
        for number, row in enumerate(rows, 2):
            if not row:
                continue
            if len(row) <= max(places):
                raise DataError(f"{path}: line {number} has {len(row)} cells, expected {len(names)}")
            cells = [row[place].strip() for place in places]
            name, kind = cells[0], cells[1] if len(cells) == 3 else ""
            if header[0] in ("image_label", "imageid_classid"):
                name, _, kind = name.rpartition("_")
            yield name, kind, "" if cells[-1].lower() in EMPTY else cells[-1]


def read_run_lengths(source: Path, options: ConvertOptions) -> SourceData:
    """Read a table; rows of one image and one class are joined. Images without a row are left out, with a note.

    Raises:
        DataError: the table has no rows, or a row lacks cells.
        ConfigError: a class of `options` does not exist.
    """
    path = table_of(source)
    assert path is not None
    header = header_of(path)
    assert header is not None
    texts: dict[str, dict[str, list[str]]] = {}
    for name, kind, text in rows_of(path, header):
        texts.setdefault(name, {}).setdefault(kind, []).extend([text] if text else [])
    kinds = sorted({kind for of_image in texts.values() for kind in of_image if kind})
    if kinds:
        named = [f"class {kind}" if kind.isdigit() else kind for kind in kinds]
        classes, label_of = chosen_classes(named, options, path)
        of_kind = {kind: label_of.get(name, 0) for kind, name in zip(kinds, named, strict=True)}
    else:
        classes, of_kind = options.classes or ("foreground",), {"": 1}
        if len(classes) > 1:
            raise ConfigError(f"--classes: {path} has one class, found {len(classes)} names; give one")
    if not texts:
        raise DataError(f"{path}: has no rows below its header")
    index = ImageIndex(options.images or path.parent)
    columns = HEADERS[header] if options.columns is None else options.columns
    samples = []
    for name, of_image in texts.items():
        file, fault = index.find(name)
        runs = Runs(of_image, of_kind, columns)
        samples.append(Sample(image=file, name=name, split="", labels=runs, fault=fault))
    return SourceData(samples=samples, classes=classes, notes=notes_on_images(index, samples, path))


def notes_on_images(index: ImageIndex, samples: Sequence[Sample], table: Path) -> list[str]:
    """Return a note on images in the folders of those in the table that have no row: they may be without foreground."""
    named = {sample.path for sample in samples}
    folders = {path.parent for path in named}
    others = [path for path in index.paths if path.parent in folders and path not in named]
    if not others:
        return []
    count = f"{len(others)} images have no row and are" if len(others) > 1 else "1 image has no row and is"
    return [
        f"{table}: {count} left out: {first_files(map(short_name, others))}; add rows without run lengths for those "
        "that have no foreground"
    ]


class Runs:
    """The run lengths of one image, drawn as labels."""

    def __init__(self, texts: Mapping[str, list[str]], label_of: Mapping[str, int], columns: bool) -> None:
        self._texts, self._label_of, self._columns = texts, label_of, columns

    def __call__(self, size: tuple[int, int]) -> Labels:
        """Draw the runs at (height, width); raises an `ImageError` if they do not fit."""
        labels = np.zeros(size, np.uint8)
        for kind, texts in self._texts.items():
            for text in texts:
                try:
                    region = decode(text, size[::-1]).T if self._columns else decode(text, size)
                except ImageError as error:
                    raise ImageError(f"has invalid run lengths ({error})") from error
                labels[region.astype(bool)] = self._label_of.get(kind, 0)
        return labels
