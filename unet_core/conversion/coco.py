"""COCO's JSON: polygons and run lengths, as COCO, Roboflow, CVAT and Label Studio write them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import DataError, ImageError
from runtime.rle import coco_decode
from unet_core.conversion.json_files import read_json
from unet_core.conversion.polygons import draw_polygons
from unet_core.conversion.samples import (
    ConvertOptions,
    ImageIndex,
    Sample,
    SourceData,
    chosen_classes,
)
from unet_core.data.labels import Labels
from unet_core.data.names import split_of

KEYS = ("images", "annotations", "categories")
"""Keys of the JSON file that are needed."""

INSTANCES = "instances"
"""Beginning of the names of COCO's files of regions; those of key points and captions lie beside them."""


def annotation_files(source: Path) -> list[Path]:
    """The JSON files of a source, a file or a folder, that hold COCO's annotations."""
    if source.is_file():
        return [source] if source.suffix.lower() == ".json" and is_coco(read_json(source)) else []
    if not source.is_dir():
        return []
    places = [
        source,
        source / "annotations",
        *(path for path in sorted(source.iterdir()) if split_of(path.name) and path.is_dir()),
    ]
    found = [path for place in places for path in (sorted(place.glob("*.json")) if place.is_dir() else [])]
    named = [path for path in found if path.name.startswith(INSTANCES)]
    return [path for path in named or found if is_coco(read_json(path))]


def is_coco(content: Any) -> bool:
    """Return True if the content of a JSON file has the lists of COCO's format."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in KEYS)


def read_coco(source: Path, options: ConvertOptions) -> SourceData:
    """Read COCO's annotations. Larger regions lie below smaller ones; regions of a crowd count as others do.

    Raises:
        DataError: the files do not fit COCO's format.
        ConfigError: a class of `options` does not exist.
    """
    files = annotation_files(source)
    contents = {path: read_json(path) for path in files}
    names: dict[str, None] = {}
    used: set[str] = set()
    for path, content in contents.items():
        categories = category_names(content, path)
        names |= dict.fromkeys(categories.values())
        used |= {categories[found] for found in category_ids(content, path, categories)}
    unused = [name for name in names if name not in used] if used and not options.classes else []
    classes, label_of = chosen_classes([name for name in names if name not in unused], options, source)
    notes = []
    if unused:
        count = f"{len(unused)} categories have" if len(unused) > 1 else "1 category has"
        listed = ", ".join([*unused[:5], *(["..."] if len(unused) > 5 else [])])
        notes = [f"{count} no annotation and no class: {listed}; --classes names some"]
    folder = source if source.is_dir() else source.parent
    index = ImageIndex(
        options.images or (folder.parent if folder.name == "annotations" and source.is_file() else folder)
    )
    samples: list[Sample] = []
    for path, content in contents.items():
        of_file, lost = samples_of_file(path, content, index, label_of, folder)
        samples += of_file
        if lost:
            count = f"{lost} annotations have" if lost > 1 else "1 annotation has"
            notes.append(f"{path}: {count} an image_id that no image has, and {'are' if lost > 1 else 'is'} left out")
    return SourceData(samples=samples, classes=classes, notes=notes)


def samples_of_file(
    path: Path, content: Any, index: ImageIndex, label_of: Mapping[str, int], folder: Path
) -> tuple[list[Sample], int]:
    """The samples of one JSON file in the source's folder or below it, and the number of annotations of no image."""
    categories = category_names(content, path)
    by_image: dict[str | float, list[Any]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(as_key(annotation.get("image_id")), []).append(annotation)
    stem = path.stem.removeprefix(f"{INSTANCES}_")
    near = (path.parent, path.parent / "images", path.parent.parent / stem, path.parent.parent / "images" / stem)
    # The folder that a user names may be called anything, such as "test"; those in it tell a split.
    split = split_of(*path.relative_to(folder).parts[:-1], path.stem)
    samples = []
    seen: set[str | float] = set()
    for number, image in enumerate(content["images"]):
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or "id" not in image:
            raise DataError(f"{path}: image {number} has no id or no file_name; expected both")
        if (key := as_key(image["id"])) in seen:
            raise DataError(f"{path}: has two images with the id {key}; expected different ones")
        seen.add(key)
        file, fault = index.find(image["file_name"], near)
        regions = Regions(
            by_image.pop(key, []),
            categories,
            label_of,
            (image.get("height"), image.get("width")),
        )
        samples.append(
            Sample(
                image=file,
                name=image["file_name"],
                split=split_of(*image["file_name"].replace("\\", "/").split("/")[:-1]) or split,
                labels=regions,
                fault=fault,
            )
        )
    return samples, sum(map(len, by_image.values()))


def as_key(value: Any) -> str | float:
    """An id as a key: a number or text as it is, and of anything else its text."""
    return value if isinstance(value, int | float | str) else str(value)


def category_names(content: Any, path: Path) -> dict[Any, str]:
    """The names of a file's categories by id.

    Raises:
        DataError: one lacks its id or name, or an id occurs twice.
    """
    names: dict[Any, str] = {}
    for category in content["categories"]:
        if (
            not isinstance(category, dict)
            or not isinstance(category.get("name"), str)
            or not isinstance(category.get("id"), int)
        ):
            raise DataError(f"{path}: has a category without id or name; expected both")
        if category["id"] in names:
            raise DataError(f"{path}: has two categories with the id {category['id']}; expected different ones")
        names[category["id"]] = category["name"]
    return names


def category_ids(content: Any, path: Path, categories: Mapping[Any, str]) -> list[Any]:
    """The category of each annotation; raises a `DataError` if one is not in the file."""
    found = []
    for number, annotation in enumerate(content["annotations"]):
        known = isinstance(annotation, dict) and as_key(annotation.get("category_id")) in categories
        if not known:
            raise DataError(f"{path}: annotation {number} has no category of the file; expected an id in categories")
        found.append(annotation["category_id"])
    return found


class Regions:
    """The annotations of one image, drawn as labels."""

    def __init__(
        self,
        annotations: Sequence[Any],
        categories: Mapping[Any, str],
        label_of: Mapping[str, int],
        size: tuple[Any, Any],
    ) -> None:
        self._annotations, self._size = annotations, size
        self._labels = [label_of.get(categories[annotation["category_id"]], 0) for annotation in annotations]

    def __call__(self, size: tuple[int, int]) -> Labels:
        """Draw the annotations at (height, width); raises an `ImageError` if they do not fit."""
        if self._size not in ((None, None), size):
            height, width = self._size
            raise ImageError(
                f"is {size[1]}x{size[0]}, its annotations are for {width}x{height}; use the image that was annotated"
            )
        labels = np.zeros(size, np.uint8)
        areas = np.full(size, size[0] * size[1], np.uint32)  # of the region that each pixel shows
        for annotation, label in zip(self._annotations, self._labels, strict=True):
            region = self._region(annotation.get("segmentation"), size)
            area = np.count_nonzero(region)
            region &= areas >= area  # a large image may have thousands of regions: one at a time is in memory
            labels[region], areas[region] = label, area
        return labels

    def _region(self, segmentation: Any, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        if isinstance(segmentation, dict):
            region = coco_decode(segmentation)
            if region.shape != size:
                raise ImageError(
                    f"has run lengths for {region.shape[1]}x{region.shape[0]}, expected {size[1]}x{size[0]}"
                )
            return region.astype(np.bool_)
        if not isinstance(segmentation, list) or not segmentation:
            raise ImageError("has an annotation without a region (a box alone?), expected polygons or run lengths")
        return draw_polygons(segmentation, size)
