"""Folders of images and mask files, with the names that people give them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from runtime.errors import DataError, ImageError
from runtime.image_files.decoding import open_image
from runtime.image_files.folders import ARRAY_SUFFIXES
from runtime.image_files.limits import Limits
from unet_core.config import TrainConfig
from unet_core.conversion.samples import ConvertOptions, Sample, SourceData, files_below
from unet_core.data.faults import short_name
from unet_core.data.labels import Labels, LabelSpec
from unet_core.data.mask_values import classes_of
from unet_core.data.names import first_files, is_mask, masks_beside, shared_keys, split_of
from unet_core.data.pairs import Pair


def in_folder(path: Path, source: Path, name: str) -> bool:
    """Return True if a folder below the source has this name, or ends with it, as train_NAME does."""
    return any(part == name or part.endswith(f"_{name}") for part in path.relative_to(source).parts[:-1])


def read_folders(source: Path, options: ConvertOptions) -> SourceData:
    """Pair the images below a folder with the masks there, by the words in their names and in those of folders.

    Raises:
        DataError: there are no images or no masks.
        ConfigError: these options contradict one another, as in training.
    """
    files = files_below(source)
    masks = [path for path in files if is_mask(path, source)]
    images = sorted({*files} - {*masks})
    if options.masks:
        masks = [path for path in files if in_folder(path, source, options.masks)]
        images = sorted({*images} - {*masks})
    if not images:
        images = [path for path in files_below(source, arrays=True) if path.suffix.lower() in ARRAY_SUFFIXES]
    if not images or not masks:
        raise DataError(
            f"{source}: found {len(images)} images and {len(masks)} masks below it, expected both; masks are known by "
            "a word such as masks or labels in the name of their folder or file"
        )
    classes = options.classes or classes_of(options.values.colours) or ("foreground",)
    spec = TrainConfig(
        data=str(source),
        out="unused",
        classes=classes,
        ignore_index=options.ignore_index,
        class_offset=options.class_offset,
        mask_threshold=options.values.threshold,
        colours=options.values.colours,
    ).labels
    by_key: dict[str, list[Path]] = {}
    keys = shared_keys(images, masks, source)
    for mask in masks:
        by_key.setdefault(keys[mask], []).append(mask)
    of_objects = masks_beside(images, masks)
    samples, used = [], set()
    for image in images:
        found = by_key.get(keys[image], [])
        objects = of_objects.get(image, []) if len(found) != 1 else []
        if options.instances and objects:
            found = objects
        relative = image.relative_to(source)
        split = split_of(*relative.parts[:-1])
        fault = "" if found or split == "test" else "has no mask of a similar name"
        if len(objects) > 1 and not options.instances:
            fault = f"has {len(objects)} masks in the folder beside; give --instances foreground if each is one object"
        elif len(found) > 1 and not objects:
            listed = first_files(map(short_name, found))
            fault = f"has {len(found)} masks ({listed}), expected one; name their folder with --masks"
        used |= {*found}
        labels = partial(read_masks, found, spec, options) if found else None
        samples.append(
            Sample(
                image=image,
                name=str(relative),
                split=split,
                labels=labels,
                mask=found[0] if found else None,
                fault=fault,
            )
        )
    lonely = [mask for mask in masks if mask not in used]
    notes = []
    if lonely:
        count = f"{len(lonely)} masks have" if len(lonely) > 1 else "1 mask has"
        notes = [f"{source}: {count} no image of a similar name: {first_files(map(short_name, lonely))}"]
    return SourceData(samples=samples, classes=classes, notes=notes)


def read_masks(paths: Sequence[Path], spec: LabelSpec, options: ConvertOptions, size: tuple[int, int]) -> Labels:
    """Read a mask file as labels, or one for each object; numbers or colours of instances all become the one class.

    Raises:
        ImageError: a file cannot be read, or one of several has another size, (height, width).
    """
    if not options.instances:
        return Pair(image=paths[0], mask=paths[0], values=options.values).truth(spec, options.limits)
    labels = np.zeros(size, np.uint8)
    for path in paths:
        mask = foreground_of(path, options.limits)
        if len(paths) == 1:
            return mask
        if mask.shape != size:
            height, width = mask.shape
            raise ImageError(f"{path}: differs in size from its image ({width}x{height}, expected {size[1]}x{size[0]})")
        labels |= mask
    return labels


def foreground_of(path: Path, limits: Limits) -> Labels:
    """Read a mask of numbers or colours of instances: 0 for 0 and black, 1 elsewhere, uint8 [height, width]."""
    picture = open_image(path, limits=limits)
    array = np.asarray(picture.convert("RGB") if picture.mode in ("RGBA", "P", "LA") else picture)
    return np.asarray(array.any(axis=2) if array.ndim == 3 else array != 0, np.uint8)
