"""The formats that an answer is written in: one table for `Segmentation.save`, `unet-predict --format` and servers.

A new format is one entry in this file, in `FORMATS` for one file per image, or in `TABLES` for one file for all images.
Importing it loads the standard library only, so that `--help` is fast.
"""

import io
import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from runtime.errors import OutputError
from runtime.images.png_colours import GREY, INDEXED, RGB, RGBA
from runtime.support.files import replacing

if TYPE_CHECKING:
    from runtime.answer_files.joined_file import FileLayout, JoinedFile
    from runtime.card import OutputSpec
    from runtime.images.cutout import Colour
    from runtime.result import Segmentation

LEGEND = "legend.csv"
"""Name of the file beside pictures whose values need names."""

PNG_BEGIN, PNG_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0\0\0\0IEND\xaeB`\x82"


class FileEnds(NamedTuple):
    """The first 128 bytes of a file, its last 12, and its length in bytes."""

    begin: bytes
    end: bytes
    length: int


Shape = tuple[int, int, int]
"""(classes, height, width) of an answer."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format with one file for each image.

    Attributes:
        name: value of `--format`.
        suffixes: file suffixes. `unet-predict` uses the first. `Segmentation.save` takes the first format of `FORMATS`
            that has the suffix of its path.
        media_type: of an HTTP response.
        write: writes an answer to a binary file that need not be seekable.
        thresholded: True if another threshold changes the file.
        help: one sentence for `--format`; without it, only `Segmentation.save` offers the format.
        max_classes: largest number of classes that the format can hold.
        overlapping: False if the format holds one class for each pixel.
        is_whole: returns True if a file with these ends is complete and holds an answer of this shape, for
            `--skip-existing`. By default any file that is not empty, since files are written atomically.
        shows_image: True if the file shows the image itself, so that all of its pixels are needed.
        legend: returns the content of the file `LEGEND` that `unet-predict` writes beside the files, or None.
    """

    name: str
    suffixes: tuple[str, ...]
    media_type: str
    write: Callable[["Segmentation", IO[bytes]], None]
    thresholded: bool
    help: str = ""
    max_classes: int | None = None
    overlapping: bool = True
    shows_image: bool = False
    is_whole: Callable[[FileEnds, Shape], bool] = lambda ends, _: ends.length > 0
    legend: Callable[["OutputSpec"], bytes] | None = None

    def check(self, output: "OutputSpec", where: str) -> None:
        """Raise an OutputError that names `where` if the format cannot hold a model's answers."""
        if output.overlapping and not self.overlapping:
            raise OutputError(
                f"{where}: holds one class for each pixel, and this model's classes overlap; take tiff (a page for "
                "each class) or npy (probabilities)"
            )
        if self.max_classes is not None and len(output.classes) > self.max_classes:
            most = "1 class" if self.max_classes == 1 else f"{self.max_classes} classes"
            raise OutputError(f"{where}: keeps at most {most}, the mask may have more; take mask (.png) or tiff (.tif)")

    def encode(self, result: "Segmentation") -> bytes:
        """Return the file's bytes."""
        self.check(result.output, self.name)
        file = io.BytesIO()
        self.write(result, file)
        return file.getvalue()

    def save(self, result: "Segmentation", path: str | os.PathLike[str], *, follow: bool = False) -> None:
        """Write the file atomically; with `follow`, for a path that a user named, to where a link leads.

        Raises:
            OutputError: the file cannot be written, or the format cannot hold this answer.
        """
        self.check(result.output, str(path))
        with replacing(path, follow=follow) as temporary, open(temporary, "wb") as file:
            self.write(result, file)

    def is_finished(self, path: str | os.PathLike[str], classes: int, size: tuple[int, int]) -> bool:
        """Return True if `path` is a whole file of this format for an image of `size`, turned or not.

        `size` is (height, width). The file's ends are read only, so this cannot tell which model wrote it.
        """
        try:
            with open(path, "rb", buffering=0) as file:
                return self.is_complete(file, classes, size)
        except OSError:
            return False

    def is_complete(self, file: IO[bytes], classes: int, size: tuple[int, int]) -> bool:
        """Return True if a file, open at its beginning, is whole; see `is_finished`."""
        begin = file.read(128)
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - len(PNG_END)))
        ends = FileEnds(begin, file.read(len(PNG_END)), length)
        return any(self.is_whole(ends, (classes, *sides)) for sides in (size, size[::-1]))


@dataclass(frozen=True, kw_only=True)
class TableFormat:
    """A format with one file for all images.

    Attributes:
        name: value of `--format`.
        suffix: suffix that the file must have.
        layout: returns how the answers of a model are written to a new file.
        thresholded: True if another threshold changes the file.
        help: one sentence for `--format`.
    """

    name: str
    suffix: str
    layout: Callable[["OutputSpec"], "FileLayout"]
    thresholded: bool
    help: str

    @contextmanager
    def open(self, path: str | os.PathLike[str], output: "OutputSpec", *, keep: bool = False) -> Iterator["JoinedFile"]:
        """Open a file for the answers of many images: `file.add(name, result)` writes one, and nothing is gathered.

        The file appears when the context ends, also after Ctrl-C; after another error the old one stays.

        Args:
            path: path of the file; a link is followed.
            output: `predictor.card.output`.
            keep: start with the answers that the file already has.

        Raises:
            OutputError: the file cannot be written, or has another layout so that nothing can be added.
        """
        from runtime.answer_files.joined_file import open_joined

        with open_joined(self.layout(output), Path(path), keep) as file:
            yield file

    def encode(self, name: str, result: "Segmentation") -> bytes:
        """Return the bytes of a file that holds the answer of one image, under its name."""
        from runtime.answer_files.joined_file import JoinedFile

        file = io.BytesIO()
        joined = JoinedFile(self.layout(result.output), file)
        joined.add(name, result)
        joined.finish()
        return file.getvalue()


def format_for(path: Path) -> Format:
    """Return the format that `Segmentation.save` writes to this path.

    Raises:
        OutputError: no format has this suffix.
    """
    suffix = path.suffix.lower()
    for form in FORMATS.values():
        if suffix in form.suffixes:
            return form
    known = sorted({one for form in FORMATS.values() for one in form.suffixes})
    raise OutputError(
        f"{path}: would not keep a mask exactly; expected a name that ends in {', '.join(known)}; "
        "to get a picture to look at, save Image.fromarray(result.overlay())"
    )


def format_named(name: str | Format) -> Format:
    """Return a format by its name, or by a suffix without its dot; a format itself as it is.

    Raises:
        OutputError: there is no such format with one file for each image.
    """
    if isinstance(name, Format):
        return name
    text = str(name).lower().removeprefix(".")
    if text in TABLES:
        raise OutputError(
            f"format: {text} is one file for all images; expected a format with one for each, or call "
            f'runtime.output_formats.TABLES["{text}"].open(path, result.output) and add(name, result)'
        )
    for form in FORMATS.values():
        if text == form.name or f".{text}" in form.suffixes:
            return form
    suffixes = {one.removeprefix(".") for form in FORMATS.values() for one in form.suffixes}
    raise OutputError(f"format: found {name!r}, expected one of {', '.join(sorted({*FORMATS, *suffixes}))}")


def cutout_format(*, soft: bool = False, background: "Colour" = None, keep_colours: bool = False) -> Format:
    """Return the format "cutout" with the options of `Segmentation.cutout`, for `Segmentation.save`.

    Raises:
        ConfigError: `background` is not a colour, or it has no transparent pixels to keep the colours of.
    """
    from runtime.images.cutout import check_background

    colour = check_background(background, keep_colours)

    def pixels(result: "Segmentation") -> Any:
        return result.cutout(soft=soft, background=colour, keep_colours=keep_colours)

    return replace(
        FORMATS["cutout"],
        write=_png(pixels),
        thresholded=not soft,
        is_whole=partial(_is_png, colour=RGBA if colour is None else RGB),
    )


def _png(pixels: Callable[["Segmentation"], Any]) -> Callable[["Segmentation", IO[bytes]], None]:
    """Return a writer of PNG files with these pixels."""

    def write(result: "Segmentation", file: IO[bytes]) -> None:
        from runtime.images.png import encode_png

        file.write(encode_png(pixels(result)))

    return write


def _pillow(kind: str, **options: Any) -> Callable[["Segmentation", IO[bytes]], None]:
    """Return a writer of the mask in one of Pillow's lossless formats."""

    def write(result: "Segmentation", file: IO[bytes]) -> None:
        result.picture().save(file, kind, **options)

    return write


def _write_mask(result: "Segmentation", file: IO[bytes]) -> None:
    from runtime.images.png import encode_mask_png, encode_png

    encode = encode_mask_png if result.output.thresholded else encode_png
    file.write(encode(result.mask))


def _write_bilevel(result: "Segmentation", file: IO[bytes]) -> None:
    from runtime.images.png import encode_bilevel_png

    file.write(encode_bilevel_png(result.mask))


def _foreground_levels(result: "Segmentation") -> Any:
    """Probability of the foreground times 65535, uint16 [height, width]."""
    import numpy as np

    return result.probability_of(None, np.uint16)


def _write_tiff(result: "Segmentation", file: IO[bytes]) -> None:
    first, *rest = result.pictures()
    pages = io.BytesIO()  # Pillow reads what it wrote to add a page
    first.save(pages, "TIFF", save_all=bool(rest), append_images=rest)
    file.write(pages.getvalue())


def _write_npy(result: "Segmentation", file: IO[bytes]) -> None:
    import numpy as np

    file.write(_npy_header(result.probability.shape))
    file.write(np.ascontiguousarray(result.probability, "<f4").data)  # np.save hides why a disk refuses it


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The first 128 bytes of a .npy file of float32 [classes, height, width]."""
    import numpy as np

    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _write_palette(result: "Segmentation", file: IO[bytes]) -> None:
    from runtime.images.palette import PALETTE
    from runtime.images.png import encode_palette_png

    file.write(encode_palette_png(result.mask, PALETTE))


def _legend(output: "OutputSpec") -> bytes:
    from runtime.images.palette import legend_csv

    return legend_csv(output)


def _write_geojson(result: "Segmentation", file: IO[bytes]) -> None:
    from runtime.answer_files import geojson

    geojson.write(result, file)


def _is_geojson(ends: FileEnds, shape: Shape) -> bool:
    """Return True if a file is complete and for an image of this size."""
    from runtime.answer_files import geojson

    return ends.begin.startswith(geojson.head(*shape[1:])) and ends.end.endswith(geojson.END)


def _run_lengths(_: "OutputSpec") -> "FileLayout":
    from runtime.answer_files import csv_table

    return csv_table.run_lengths()


def _areas(output: "OutputSpec") -> "FileLayout":
    from runtime.answer_files import csv_table

    return csv_table.areas(output)


def _coco(output: "OutputSpec") -> "FileLayout":
    from runtime.answer_files import coco

    return coco.run_lengths(output)


def _coco_polygons(output: "OutputSpec") -> "FileLayout":
    from runtime.answer_files import coco

    return coco.outlines(output)


def _write_npz(result: "Segmentation", file: IO[bytes]) -> None:
    import numpy as np

    np.savez_compressed(file, probability=result.probability, mask=result.mask, classes=np.array(result.classes))


def _write_json(result: "Segmentation", file: IO[bytes]) -> None:
    import numpy as np

    from runtime.images.polygons import box_of
    from runtime.rle import coco_encode

    record = {
        "size": list(result.shape),
        "threshold": result.output.threshold if result.output.thresholded else None,
        "times": asdict(result.times) if result.times else None,
        "classes": [
            {
                "name": name,
                "area": int(np.count_nonzero(region := result.region(index))),
                "box": box_of(region),
                "rle": coco_encode(region),
            }
            for index, name in enumerate(result.classes)
        ],
    }
    file.write((json.dumps(record, indent=1) + "\n").encode())


def _is_png(ends: FileEnds, shape: Shape, *, colour: int, bits: int = 8) -> bool:
    """Return True if a PNG file is complete and has this size, colour type and bits per channel."""
    _, height, width = shape
    return ends.begin.startswith(PNG_BEGIN + struct.pack(">LLBB", width, height, bits, colour)) and ends.end == PNG_END


def _is_tiff(ends: FileEnds, shape: Shape) -> bool:
    """Return True if a file has the size in pixels and the length in bytes of a TIFF that `_write_tiff` writes."""
    classes, height, width = shape
    if not ends.begin.startswith(b"II*\0"):
        return False
    entries = [ends.begin[start : start + 12] for start in (10, 22)]  # of the width and the height, which come first
    if [struct.unpack("<HHLL", entry.ljust(12, b"\0"))[::3] for entry in entries] != [(256, width), (257, height)]:
        return False
    one = _tiff_head() + width * height * (2 if classes > 256 else 1)
    page = _tiff_head() + width * height
    return ends.length in (one, classes * (page + -page % 16))  # a class for each pixel, or a page for each class


@cache
def _tiff_head() -> int:
    """Length in bytes of a page of a TIFF without its pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "TIFF")
    return len(file.getvalue()) - 1


_LISTED = (
    Format(
        name="mask",
        suffixes=(".png",),
        media_type="image/png",
        write=_write_mask,
        thresholded=True,
        help="NAME.png, 0 and 255 for one class, class indices for several.",
        overlapping=False,
        is_whole=lambda ends, shape: _is_png(ends, shape, colour=GREY, bits=16 if shape[0] > 256 else 8),
    ),
    Format(
        name="bilevel",
        suffixes=(".png",),
        media_type="image/png",
        write=_write_bilevel,
        thresholded=True,
        help="NAME.png, the mask of one class in one bit a pixel, written faster; some programs read it as "
        "True and False, not 255 and 0.",
        max_classes=1,
        overlapping=False,
        is_whole=partial(_is_png, colour=GREY, bits=1),
    ),
    Format(
        name="probability",
        suffixes=(".png",),
        media_type="image/png",
        write=_png(_foreground_levels),
        thresholded=False,
        help="NAME.png, 16-bit grey, the probability of the foreground times 65535.",
        is_whole=partial(_is_png, colour=GREY, bits=16),
    ),
    Format(
        name="tiff",
        suffixes=(".tif", ".tiff"),
        media_type="image/tiff",
        write=_write_tiff,
        thresholded=True,
        help="NAME.tif, the same as mask; for classes that overlap, one page of 0 and 255 for each class.",
        is_whole=_is_tiff,
    ),
    Format(
        name="npy",
        suffixes=(".npy",),
        media_type="application/octet-stream",
        write=_write_npy,
        thresholded=False,
        help="NAME.npy, the probabilities of all classes, float32 [classes, height, width].",
        is_whole=lambda ends, shape: (
            ends.begin == _npy_header(shape) and ends.length == 128 + 4 * shape[0] * shape[1] * shape[2]
        ),
    ),
    Format(
        name="overlay",
        suffixes=(".png",),
        media_type="image/png",
        write=_png(lambda result: result.overlay()),
        thresholded=True,
        help="NAME.png, the image with its foreground tinted.",
        shows_image=True,
        is_whole=partial(_is_png, colour=RGB),
    ),
    Format(
        name="cutout",
        suffixes=(".png",),
        media_type="image/png",
        write=_png(lambda result: result.cutout()),
        thresholded=True,
        help="NAME.png, the image with everything but the foreground transparent.",
        shows_image=True,
        is_whole=partial(_is_png, colour=RGBA),
    ),
    Format(
        name="palette",
        suffixes=(".png",),
        media_type="image/png",
        write=_write_palette,
        thresholded=True,
        help="NAME.png, a colour for each class: a palette of class indices, 0 and 1 for one class; legend.csv names "
        "them.",
        max_classes=256,
        overlapping=False,
        is_whole=partial(_is_png, colour=INDEXED),
        legend=_legend,
    ),
    Format(
        name="geojson",
        suffixes=(".geojson",),
        media_type="application/geo+json",
        write=_write_geojson,
        thresholded=True,
        help="NAME.geojson, a polygon in pixels for each connected part of the foreground's classes.",
        is_whole=_is_geojson,
    ),
    # GIF: unless optimize is off, Pillow renumbers the values to those in use.
    Format(
        name="gif",
        suffixes=(".gif",),
        media_type="image/gif",
        write=_pillow("GIF", optimize=False),
        thresholded=True,
        max_classes=256,
        overlapping=False,
    ),
    Format(
        name="bmp",
        suffixes=(".bmp",),
        media_type="image/bmp",
        write=_pillow("BMP"),
        thresholded=True,
        max_classes=256,
        overlapping=False,
    ),
    Format(name="npz", suffixes=(".npz",), media_type="application/zip", write=_write_npz, thresholded=True),
    Format(name="json", suffixes=(".json",), media_type="application/json", write=_write_json, thresholded=True),
)

FORMATS: dict[str, Format] = {form.name: form for form in _LISTED}
"""Formats with one file for each image, by name."""

_LISTED_TABLES = (
    TableFormat(
        name="rle-csv",
        suffix=".csv",
        layout=_run_lengths,
        thresholded=True,
        help="one CSV file OUT with the run lengths of all masks, for Kaggle's Carvana challenge.",
    ),
    TableFormat(
        name="areas",
        suffix=".csv",
        layout=_areas,
        thresholded=True,
        help="one CSV file OUT with the area and the box of each class in each image.",
    ),
    TableFormat(
        name="coco",
        suffix=".json",
        layout=_coco,
        thresholded=True,
        help="one JSON file OUT in COCO's form, with exact run lengths.",
    ),
    TableFormat(
        name="coco-polygons",
        suffix=".json",
        layout=_coco_polygons,
        thresholded=True,
        help="the same with polygons, for annotation tools.",
    ),
)

TABLES: dict[str, TableFormat] = {form.name: form for form in _LISTED_TABLES}
"""Formats with one file for all images, by name."""
