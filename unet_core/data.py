"""Folders of images and masks: pairing, checking before the first epoch, loading, augmentation.

Carvana's layout: `train_images/`, `train_masks/`, `val_images/`, `val_masks/`; the mask of `X.jpg` is `X_mask.gif`, or
another lossless file named `X_mask` or `X`.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from runtime.card import InputSpec
from runtime.console import progress_hidden
from runtime.errors import DataError, ImageError, UnetError
from runtime.image import Fitted, fit, list_images, load_image, load_labels, resize
from runtime.providers import available_threads

MASK_SUFFIXES = (".gif", ".png", ".bmp", ".tif", ".tiff")
LISTED_OFFENDERS = 10
MAX_ROTATION = 35
"""Degrees to either side."""

Split = Literal["train", "val"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image file and the mask file of the same picture."""

    image: Path
    mask: Path

    @property
    def name(self) -> str:
        """The image's name without suffix."""
        return self.image.stem


def find_pairs(data: str | os.PathLike[str], split: Split) -> list[Pair]:
    """Pair every image of `split` under the data folder with its mask, sorted by name.

    Raises:
        DataError: a folder is missing or empty, an image has no mask or more than one, or two images share a name.
    """
    pairs, offenders = _match(data, split)
    _refuse(offenders, len(pairs) + len(offenders))
    return pairs


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Decode every image and mask once, so that nothing stops the work half-way.

    Raises:
        DataError: listing what is unreadable, cut off, of another size than its image, or has odd mask values.
    """
    _refuse(_problems(pairs)[0], len(pairs))


def checked_pairs(data: str | os.PathLike[str]) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs of a data folder, all found and decoded once.

    Raises:
        DataError: as `find_pairs` and `check_pairs`, listing what is wrong in both splits together; or no mask to
            train on has any foreground.
    """
    train, train_offenders = _match(data, "train")
    val, val_offenders = _match(data, "val")
    unmatched = train_offenders + val_offenders
    problems, foregrounds = _problems([*train, *val])
    _refuse(unmatched + problems, len(train) + len(val) + len(unmatched))
    if not any(foregrounds[: len(train)]):
        raise DataError(f"{Path(data) / 'train_masks'}: no mask has any foreground, so there is nothing to learn")
    return train, val


def _match(data: str | os.PathLike[str], split: Split) -> tuple[list[Pair], list[str]]:
    """The pairs of a split, and a line for every image that has no mask of its own."""
    images, masks = (Path(data) / f"{split}_{kind}" for kind in ("images", "masks"))
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; expected train_images, train_masks, val_images and val_masks in {data}"
            )
    sources = list_images(images)
    if not sources:
        raise DataError(f"{images}: no images in this folder; expected .jpg or .png files")
    found: dict[str, list[Path]] = {}
    for path in list_images(masks):
        if path.suffix.lower() in MASK_SUFFIXES:
            found.setdefault(path.stem, []).append(path)
    names = Counter(path.stem for path in sources)
    pairs, offenders = [], []
    for source in sources:
        candidates = [*found.get(f"{source.stem}_mask", ()), *found.get(source.stem, ())]
        if names[source.stem] > 1:
            offenders.append(f"{source}: another image has the same name")
        elif len(candidates) != 1:
            several = "the masks " + ", ".join(path.name for path in candidates) if candidates else "no mask"
            offenders.append(f"{source}: found {several}, expected {masks / source.stem}_mask.gif or {source.stem}.png")
        else:
            pairs.append(Pair(image=source, mask=candidates[0]))
    return pairs, offenders


def _problems(pairs: Sequence[Pair]) -> tuple[list[str], list[bool]]:
    """A line for every pair that cannot be used, and for every pair whether its mask has foreground."""
    with ThreadPoolExecutor(available_threads()) as pool:
        found = pool.map(_look_at, pairs)
        seen = list(tqdm(found, "checking data", len(pairs), disable=progress_hidden(), leave=False))
    return [text for text, _ in seen if text], [foreground for _, foreground in seen]


def _look_at(pair: Pair) -> tuple[str | None, bool]:
    try:
        image, mask = load_image(pair.image), load_truth(pair.mask)
    except ImageError as error:
        return str(error), False
    if image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        text = f"{pair.mask}: is {mask_width}x{mask_height}, expected {width}x{height} as {pair.image.name}"
        return text, False
    return None, bool(mask.any())


def _refuse(offenders: Sequence[str], total: int) -> None:
    if offenders:
        listed = "; ".join(offenders[:LISTED_OFFENDERS])
        more = len(offenders) - LISTED_OFFENDERS
        tail = f"; and {more} more" if more > 0 else ""
        raise DataError(f"{len(offenders)} of {total} pairs cannot be used, mend or remove them: {listed}{tail}")


def load_truth(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a binary mask file as 0 and 1, uint8 [height, width].

    Raises:
        ImageError: it cannot be read, or its values are neither 0 and 255 nor 0 and 1.
    """
    labels = load_labels(path)
    if labels.max() <= 1:
        return labels
    foreground: NDArray[np.bool_] = labels == 255
    if (foreground | (labels == 0)).all():
        return foreground.astype(np.uint8)
    values = np.unique(labels)
    shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
    raise ImageError(f"{path}: has the mask values {shown}, expected 0 and 255, or 0 and 1")


def fit_truth(mask: NDArray[np.uint8], fitted: Fitted) -> NDArray[np.float32]:
    """Bring a mask of 0 and 1 where its image was brought: float32 0 or 1 [height, width] (majority of each area)."""
    canvas = np.zeros(fitted.image.shape[:2], np.float32)
    part = resize(mask[:, :, None].astype(np.float32), (fitted.height, fitted.width))[:, :, 0]
    canvas[fitted.top : fitted.top + fitted.height, fitted.left : fitted.left + fitted.width] = part >= 0.5
    return canvas


def fingerprint(train: Sequence[Pair], val: Sequence[Pair]) -> str:
    """What data a model saw: numbers of pairs, and a hash over their file names and sizes."""
    digest = hashlib.sha256()
    for path in [path for pair in (*train, *val) for path in (pair.image, pair.mask)]:
        digest.update(os.fsencode(path.name) + f"\0{path.stat().st_size}\n".encode())
    return f"{len(train)} training and {len(val)} validation pairs, sha256 {digest.hexdigest()}"


class TrainingSet(Dataset[tuple[Tensor, Tensor]]):
    """Augmented pairs: image uint8 [height, width, channels], target float32 0 or 1 [1, height, width].

    An item is asked for by (epoch, index), and its augmentation is drawn from (seed, epoch, index) alone: epochs
    differ, and the same run twice sees the same pictures whatever the number of workers.
    """

    def __init__(self, pairs: Sequence[Pair], spec: InputSpec, seed: int) -> None:
        self.pairs, self.spec, self.seed = list(pairs), spec, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        pair = self.pairs[index]
        fitted = fit(load_image(pair.image, self.spec.channels), self.spec)
        target = fit_truth(load_truth(pair.mask), fitted)
        self._augment.set_random_seed(int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0]))
        result = self._augment(image=fitted.image, mask=target)
        image = np.ascontiguousarray(result["image"])
        return torch.from_numpy(image), torch.from_numpy(np.ascontiguousarray(result["mask"]))[None]

    @cached_property
    def _augment(self) -> Any:
        return augmentation()


def augmentation() -> Any:
    """Rotation by up to 35 degrees either way, the border mirrored into the corners; flips, rarely upside down."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version at import
    import albumentations

    return albumentations.Compose(
        [
            albumentations.Rotate(limit=MAX_ROTATION, p=1.0, border_mode=cv2.BORDER_REFLECT_101),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.VerticalFlip(p=0.1),
        ]
    )


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in an order drawn from (seed, epoch), so a resumed run goes on as the whole one would."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 1

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return ((self.epoch, int(index)) for index in order)


class EvaluationSet(Dataset[tuple[Tensor, Fitted, NDArray[np.uint8]]]):
    """Pairs as they are: the fitted image as a tensor, how to come back, and the truth at the original size."""

    def __init__(self, pairs: Sequence[Pair], spec: InputSpec) -> None:
        self.pairs, self.spec = list(pairs), spec

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Fitted, NDArray[np.uint8]]:
        pair = self.pairs[index]
        fitted = fit(load_image(pair.image, self.spec.channels), self.spec)
        return torch.from_numpy(fitted.image), fitted, load_truth(pair.mask)


Evaluated = tuple[Tensor, list[Fitted], list[NDArray[np.uint8]]]


def collate_evaluation(items: Sequence[tuple[Tensor, Fitted, NDArray[np.uint8]]]) -> Evaluated:
    """Stack the images [n, h, w, channels]; what differs in size stays a list."""
    images, fitted, truths = zip(*items, strict=True)
    return torch.stack(images), list(fitted), list(truths)


def batches_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """Go through a loader; an error in one of its processes is raised as it was raised there.

    PyTorch hands such an error on with the process's whole traceback for a message.
    """
    try:
        yield from loader
    except UnetError as error:
        marker = f"{type(error).__module__}.{type(error).__qualname__}: "
        raise type(error)(str(error).rpartition(marker)[2].strip()) from error


def quiet_worker(_: int) -> None:
    """Each loading process takes one core: OpenCV would otherwise start threads for all cores in every one."""
    cv2.setNumThreads(0)
