"""LabelMe's JSON: a file of shapes for each image."""

import base64
import binascii
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import DataError, ImageError
from runtime.image import load_image
from unet_core.conversion.json_files import read_json
from unet_core.conversion.polygons import draw_polygons
from unet_core.conversion.samples import ConvertOptions, Sample, SourceData, chosen_classes, files_below
from unet_core.data.labels import BACKGROUND, IGNORED, Labels
from unet_core.data.names import split_of

IGNORE, BACKGROUND_LABEL = "__ignore__", "_background_"
"""LabelMe's own names of pixels that do not count, and of the background."""

LINES = ("line", "linestrip", "point", "points")
"""Kinds of shapes that have no area."""

CIRCLE_POINTS = 180
"""Number of points of the polygon that stands for a circle."""


def is_labelme(content: Any) -> bool:
    """Return True if the content of a JSON file is that of LabelMe."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def labelme_files(source: Path) -> list[Path]:
    """The files of LabelMe below a folder, if the first of the JSON files there is one."""
    files = files_below(source, ".json") if source.is_dir() else []
    return files if files and is_labelme(read_json(files[0])) else []


def read_labelme(source: Path, options: ConvertOptions) -> SourceData:
    """Read LabelMe's files. Later shapes lie above earlier ones; lines and points, which have no area, are left out.

    Raises:
        DataError: a file is not of LabelMe.
        ConfigError: a class of `options` does not exist.
    """
    found: list[tuple[Path, list[Any], Path | bytes, str]] = []
    for path in labelme_files(source):
        content = read_json(path)
        if not is_labelme(content) or not all(
            isinstance(shape, dict) and isinstance(shape.get("label"), str) for shape in content["shapes"]
        ):
            raise DataError(
                f"{path}: is not a file of LabelMe (no imagePath, or shapes without labels); move it elsewhere"
            )
        found.append((path, content["shapes"], *image_of(path, content, options)))  # without a copy of the image
    names = sorted({shape["label"] for _, shapes, *_ in found for shape in shapes} - {IGNORE, BACKGROUND_LABEL})
    classes, label_of = chosen_classes(names, options, source)
    label_of |= {IGNORE: IGNORED, BACKGROUND_LABEL: label_of.get(BACKGROUND, 0)}
    samples, lines = [], 0
    for path, drawn, image, fault in found:
        shapes = [shape for shape in drawn if shape.get("shape_type") not in LINES]
        lines += len(drawn) - len(shapes)
        samples.append(
            Sample(
                image=image,
                name=str(path.relative_to(source).with_suffix("")),
                split=split_of(*path.relative_to(source).parts[:-1]),
                labels=Shapes(shapes, label_of),
                fault=fault,
            )
        )
    notes = [f"{lines} line{'s' * (lines > 1)} or points left out, which have no area"] if lines else []
    return SourceData(samples=samples, classes=classes, notes=notes)


def image_of(path: Path, content: Any, options: ConvertOptions) -> tuple[Path | bytes, str]:
    """The image of a file of LabelMe: beside it, or else inside it; and a fault."""
    name = str(content["imagePath"]).replace("\\", "/")
    places = [path.parent / name, path.parent / Path(name).name]
    if options.images:
        places = [options.images / Path(name).name]
    for place in places:
        if place.is_file():
            return place, ""
    inside = content.get("imageData")
    if isinstance(inside, str) and inside:
        try:
            return base64.b64decode(inside, validate=True), ""
        except binascii.Error:
            return path, "has imageData that is not base64, and its image is missing"
    return path, f"its image {name} is missing; put it beside the file, or name its folder with --images"


class Shapes:
    """The shapes of one image, drawn as labels."""

    def __init__(self, shapes: list[Any], label_of: dict[str, int]) -> None:
        self._shapes, self._label_of = shapes, label_of

    def __call__(self, size: tuple[int, int]) -> Labels:
        """Draw the shapes at (height, width); raises an `ImageError` if one cannot be drawn."""
        labels = np.zeros(size, np.uint8)
        for shape in self._shapes:
            labels[drawn(shape, size)] = self._label_of.get(shape["label"], 0)
        return labels


def drawn(shape: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw a polygon, rectangle, circle or mask of LabelMe; bool [height, width].

    Raises:
        ImageError: it is of another kind, or malformed.
    """
    kind = shape.get("shape_type") or "polygon"
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        if kind == "rectangle":
            (x0, y0), (x1, y1) = points
            points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        elif kind == "circle":
            (x, y), edge = points
            radius, angles = math.dist((x, y), edge), np.linspace(0, 2 * math.pi, CIRCLE_POINTS, endpoint=False)
            points = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
        elif kind == "mask":
            return placed_mask(shape, points, size)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ImageError(f"has a {kind} of LabelMe with points that make no sense") from error
    if kind not in ("polygon", "rectangle", "circle"):
        raise ImageError(f"has a shape of the kind {kind!r}, expected polygon, rectangle, circle or mask")
    return draw_polygons([[value for point in points for value in point]], size)


def placed_mask(shape: Any, points: list[tuple[float, float]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Place a shape's own mask, a PNG in base64, at the corner of its box."""
    mask = load_image(base64.b64decode(shape["mask"]), "L")[:, :, 0] > 0
    left, top = round(points[0][0]), round(points[0][1])
    height, width = mask.shape
    if left < 0 or top < 0 or top + height > size[0] or left + width > size[1]:
        raise ImageError(f"has a mask of LabelMe that reaches outside its image of {size[1]}x{size[0]}")
    region = np.zeros(size, np.bool_)
    region[top : top + height, left : left + width] = mask
    return region
