"""`LAYOUTS`: the layouts that conversion reads, in one table, and which of them a source has."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ConfigError, DataError
from unet_core.conversion.coco import annotation_files, read_coco
from unet_core.conversion.folders import read_folders
from unet_core.conversion.labelme import labelme_files, read_labelme
from unet_core.conversion.run_lengths import read_run_lengths, table_of
from unet_core.conversion.samples import ConvertOptions, SourceData
from unet_core.conversion.streets import is_ade20k, is_cityscapes, read_ade20k, read_cityscapes
from unet_core.conversion.voc import read_voc, voc_folder


@dataclass(frozen=True)
class SourceLayout:
    """A layout: what it consists of, how it is recognised and read, and which options of masks it takes."""

    description: str
    recognise: Callable[[Path], object]
    read: Callable[[Path, ConvertOptions], SourceData]
    takes: tuple[str, ...] = ()


LAYOUTS = {
    "cityscapes": SourceLayout("leftImg8bit/ and gtFine/", is_cityscapes, read_cityscapes),
    "ade20k": SourceLayout("images/training/ and annotations/training/", is_ade20k, read_ade20k),
    "voc": SourceLayout(
        "JPEGImages/ and SegmentationClass/", voc_folder, read_voc, ("ignore_index", "values", "images")
    ),
    "coco": SourceLayout("a JSON file of images, annotations and categories", annotation_files, read_coco, ("images",)),
    "labelme": SourceLayout("a JSON file of shapes for each image", labelme_files, read_labelme, ("images",)),
    "rle": SourceLayout("a CSV file of run lengths", table_of, read_run_lengths, ("images", "columns")),
    "folders": SourceLayout(
        "images and mask files",
        Path.is_dir,
        read_folders,
        ("ignore_index", "class_offset", "values", "instances", "masks"),
    ),
}
"""Every layout by its name; the first that recognises a source reads it."""

FLAGS = {
    "images": "--images",
    "masks": "--masks",
    "ignore_index": "--ignore-index",
    "class_offset": "--class-offset",
    "values": "--mask-threshold and --colours",
    "instances": "--instances",
    "columns": "--rle-order",
}
"""The flags of the options that only some layouts take."""


def read_source(source: Path, name: str, options: ConvertOptions) -> tuple[str, SourceData]:
    """Read a source in the layout of this name, or with "auto" in the first that recognises it; the layout's name too.

    Raises:
        DataError: the source does not exist, is not in that layout, or has no images.
        ConfigError: an option does not go with the layout.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; expected a data set to convert")
    if name == "auto":
        name = next((known for known, layout in LAYOUTS.items() if layout.recognise(source)), "")
        if not name:
            raise DataError(
                f"{source}: is in no known layout; expected a folder, COCO's JSON, or a CSV file of run lengths with a "
                "header such as img,rle_mask or ImageId,EncodedPixels"
            )
    layout = LAYOUTS[name]
    if not layout.recognise(source):
        raise DataError(f"{source}: is not in the layout {name}; expected {layout.description}")
    default = ConvertOptions()
    for field, flag in FLAGS.items():
        if field not in layout.takes and getattr(options, field) != getattr(default, field):
            raise ConfigError(
                f"{flag}: does not go with the layout {name} of {source}; leave it out, or give another --from"
            )
    found = layout.read(source, options)
    if not found.samples:
        raise DataError(f"{source}: has no images to convert (layout {name}); expected {layout.description}")
    return name, found
