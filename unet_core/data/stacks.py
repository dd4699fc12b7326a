"""TIFF files of several pages: stacks of images with stacks of masks, and masks with a page for each class."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from runtime.card import MAX_CHANNELS
from runtime.errors import ImageError
from runtime.image_files.limits import Limits
from unet_core.data.labels import Labels, load_labels

if TYPE_CHECKING:
    from unet_core.data.pairs import Pair

TIFF_SUFFIXES = (".tif", ".tiff", ".geotiff")


def number_of_pages(path: str | os.PathLike[str]) -> int:
    """Return the number of pages of a TIFF file; 1 for every other file.

    Raises:
        ImageError: the pages differ in size, or their list is damaged.
    """
    from runtime.image_files.tiff_pages import page_sizes

    if not os.fspath(path).lower().endswith(TIFF_SUFFIXES):
        return 1
    sizes = page_sizes(path)
    if len(set(sizes)) > 1:
        raise ImageError(f"{path}: has {len(sizes)} pages of different sizes; expected one page, or pages of one size")
    return max(1, len(sizes))


def expand(pair: "Pair") -> list["Pair"]:
    """Return a pair for each page if image and mask are stacks of as many pages, else the pair itself.

    A stack that does not fit its mask becomes a pair with a `fault`. A mask of several pages to an image of one page
    is read by `load_one_hot`.
    """
    if pair.mask is None:
        return [pair]
    try:
        images, masks = number_of_pages(pair.image), number_of_pages(pair.mask)
    except ImageError as error:
        path = next(path for path in pair.files if str(error).startswith(f"{path}: "))
        named = "" if path == pair.image else f"has a mask ({path.name}) that "
        return [replace(pair, mask=None, fault=named + str(error).removeprefix(f"{path}: "))]
    if images == 1:
        return [pair]
    if images != masks:
        fault = f"has {images} pages and its mask {pair.mask.name} has {masks}, expected as many in both"
        if masks == 1 and images <= MAX_CHANNELS:
            fault += f"; if they are channels, save an array [height, width, {images}] and give --channels {images}"
        return [replace(pair, mask=None, fault=fault)]
    return [replace(pair, page=page) for page in range(images)]


def load_one_hot(path: str | os.PathLike[str], pages: int, classes: int, limits: Limits) -> Labels:
    """Read a mask file that has a page for each of several classes, on which the pixels of that class are set.

    Raises:
        ImageError: the number of pages is another one, or a pixel is set on none or on several of them.
    """
    from runtime.image_files.tiff_pages import open_page

    if classes == 1 or pages != classes:
        several = f", or {classes}, one for each class" if classes > 1 else ""
        raise ImageError(f"{path}: has {pages} pages, expected one{several}; save each mask as a file of its own")
    stack = [load_labels(open_page(path, page, limits), limits) for page in range(pages)]
    for number, page in enumerate(stack, 1):
        if len(values := np.unique(page[page > 0])) > 1:
            raise ImageError(
                f"{path}: has {pages} pages, of which page {number} holds {len(values)} values beside 0; expected one "
                "page of class indices, or a page of 0 and 1 (or 255) for each class"
            )
    found = np.stack(stack) > 0  # [classes, height, width]
    wrong = int(np.count_nonzero(found.sum(axis=0) != 1))
    if wrong:
        raise ImageError(
            f"{path}: has {pages} pages, and {wrong} pixels are set on none or on several of them; expected a page for "
            "each class, and every pixel on one of them"
        )
    labels: Labels = found.argmax(axis=0).astype(np.uint8)
    return labels
