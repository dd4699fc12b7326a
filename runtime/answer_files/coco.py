"""One JSON file in the form of the COCO data set for many images, with masks as run lengths or polygons.

An annotation is a class of the foreground in one image, with all of its parts. Images are numbered from 1 in the order
of the file, categories from 1 in the order of the foreground's classes, and an annotation's id follows from both. So
entries need no common counter. Each annotation and each image is one line, so that a file can be read back in turn.
"""

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import OutputError
from runtime.images.overlay import strips
from runtime.images.polygons import box_of, bridged, polygons_of
from runtime.rle import coco_encode

if TYPE_CHECKING:
    from runtime.card import OutputSpec
    from runtime.result import Segmentation

Record = dict[str, Any]

END_OF_ANNOTATIONS, BEGIN_OF_IMAGES, END_OF_IMAGES = b"],\n", b'"images": [\n', b"]}\n"
"""Lines of the file."""


def run_lengths(output: "OutputSpec") -> "CocoFile":
    """Return the layout with compressed run lengths, which are exact."""
    return CocoFile(output, coco_encode, "run lengths")


def outlines(output: "OutputSpec") -> "CocoFile":
    """Return the layout with polygons along the edges of pixels; holes are joined to the outline around them."""

    def polygons(region: NDArray[np.bool_]) -> list[list[int]]:
        return [bridged(polygon).astype(int).reshape(-1).tolist() for polygon in polygons_of(region)]

    return CocoFile(output, polygons, "polygons")


class CocoFile:
    """The layout of the file. An entry is the record of an image and those of its annotations, without their ids."""

    separator = b",\n"

    def __init__(self, output: "OutputSpec", segmentation: Callable[[NDArray[np.bool_]], Any], kind: str) -> None:
        """`segmentation` makes the value of "segmentation" from a region, bool [height, width]; `kind` names both."""
        self._segmentation, self._kind = segmentation, kind
        self._first, self._names = output.first_foreground, output.classes[output.first_foreground :]
        self._images: list[bytes] = []  # lines of the images so far, since they follow all annotations
        categories = [{"id": number, "name": name} for number, name in enumerate(self._names, 1)]
        head = {"info": {"description": f"Masks by unet-predict as {kind}"}, "licenses": [], "categories": categories}
        self.head = (json.dumps(head)[:-1] + ', "annotations": [\n').encode()

    def entry(self, name: str, result: "Segmentation") -> tuple[Record, list[Record]]:
        height, width = result.shape
        annotations = []
        for category in range(1, len(self._names) + 1):
            index = category - 1 + self._first
            region = result.region(index)
            if (box := box_of(region)) is None:
                continue
            x0, y0, x1, y1 = box
            record = {
                "category_id": category,
                "segmentation": self._segmentation(region),
                "area": int(np.count_nonzero(region)),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
                "score": round(mean_probability(result.probability[index], region), 4),
            }
            annotations.append(record)
        return {"file_name": name, "width": width, "height": height}, annotations

    def text(self, entry: tuple[Record, list[Record]], index: int, /) -> bytes:
        image, annotations = entry
        self._images[index:] = [json.dumps({"id": index + 1, **image}).encode()]
        first = index * len(self._names)
        lines = [{"id": first + one["category_id"], "image_id": index + 1, **one} for one in annotations]
        return self.separator.join(json.dumps(line).encode() for line in lines)

    def tail(self, count: int, /) -> bytes:
        images = self.separator.join(self._images[:count]) + b"\n" if count else b""
        return b"\n" + END_OF_ANNOTATIONS + BEGIN_OF_IMAGES + images + END_OF_IMAGES

    def read(self, path: Path) -> Iterator[tuple[str, tuple[Record, list[Record]]]]:
        try:
            with open(path, "rb") as file:
                annotations = self._annotations(file)
                for _ in annotations:
                    pass
                if next(file, b"") != BEGIN_OF_IMAGES:
                    raise ValueError("no images")
                images = list(lines_before(END_OF_IMAGES, file))
                groups = groupby(map(json.loads, self._annotations(file)), key=itemgetter("image_id"))
                image_id, group = next(groups, (None, iter(())))
                for number, line in enumerate(images, 1):
                    image = json.loads(line)
                    found = []
                    if image_id == number:
                        found = [without_ids(annotation) for annotation in group]
                        image_id, group = next(groups, (None, iter(())))
                    yield image["file_name"], (without_ids(image), found)
                if image_id is not None:
                    raise ValueError(f"image {image_id} is missing")
        except (ValueError, TypeError, KeyError) as error:
            raise OutputError(
                f"{path}: is not a whole COCO file of this command with {self._kind} of the classes "
                f"{', '.join(self._names)}, so nothing can be added; remove it"
            ) from error

    def _annotations(self, file: IO[bytes]) -> Iterator[bytes]:
        """Yield the lines of the annotations; raises a ValueError if the file begins or ends otherwise."""
        file.seek(0)
        if next(file, b"") != self.head:
            raise ValueError("another head")
        yield from lines_before(END_OF_ANNOTATIONS, file)


def mean_probability(probability: NDArray[np.float32], region: NDArray[np.bool_]) -> float:
    """Mean of [height, width] in a region that is not empty, between 0 and 1; NaN counts as 0."""
    parts = (np.fmin(np.fmax(probability[rows][region[rows]], 0), 1) for rows in strips(region.shape))
    return sum(float(part.sum(dtype=np.float64)) for part in parts) / int(np.count_nonzero(region))


def lines_before(end: bytes, lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield lines without the comma at their end, up to the line `end`; raises a ValueError if that does not come."""
    for line in lines:
        if line == end:
            return
        if line != b"\n":
            yield line.rstrip(b",\n")
    raise ValueError("truncated")


def without_ids(record: Record) -> Record:
    """Return a record without the numbers that depend on its place in the file."""
    return {name: value for name, value in record.items() if name not in ("id", "image_id")}
