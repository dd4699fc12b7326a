"""Segmentation: the answer for one image, at that image's own size."""

import base64
import html
import importlib
import io
import json
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from runtime.card import OutputSpec
from runtime.errors import ConfigError, ImageError, ModelError, OutputError
from runtime.image import resize
from runtime.images.overlay import COLOURS, shrunk, strips, tinted
from runtime.images.png import LOSSLESS, save_picture
from runtime.images.polygons import Polygon, box_of, polygons_of
from runtime.rle import coco_encode, encode
from runtime.support.files import replacing

LEGEND = 20
"""Classes of the legend in a notebook, at most."""

PREVIEW = 600
"""Pixels of the longer side of the picture in a notebook, at most."""

Classes = str | int | Iterable[str | int] | None
"""Which classes: a name of `Segmentation.classes`, an index there, several of these, or None for the foreground, which
is the only class, or with several all but the first."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds that each stage of an answer took.

    `decode` the file to pixels, `fit` them to the model, `transfer` to the device and back, `infer` there, `restore`
    probabilities to the image's size. A stage that many images went through together counts as that image's share.
    """

    decode: float
    fit: float
    transfer: float
    infer: float
    restore: float

    @property
    def total(self) -> float:
        """Milliseconds of all stages."""
        return float(sum(astuple(self)))

    def __str__(self) -> str:
        stages = ", ".join(f"{stage.name} {getattr(self, stage.name):.1f}" for stage in fields(self))
        return f"{self.total:.1f} ms ({stages})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Segmentation:
    """The answer for one image of height x width pixels.

    `probability` is float32 [classes, height, width], 0..1; `image` the picture as it was understood, uint8
    [height, width, 3 or 1], upright; `times` what it took, or None. `np.asarray(result)` is the mask. It can be used by
    several threads at once, and pickled.

    Raises:
        ImageError: probability and image are not of one size.
    """

    probability: NDArray[np.float32]
    image: NDArray[np.uint8]
    output: OutputSpec
    times: Times | None = None

    def __post_init__(self) -> None:
        expected = len(self.classes), *self.image.shape[:2]
        if self.probability.dtype != np.float32 or self.probability.shape != expected:
            raise ImageError(
                f"probability: found {self.probability.dtype} {list(self.probability.shape)}, expected float32 "
                f"{list(expected)}: classes, height and width of the image"
            )

    def __repr__(self) -> str:
        return f"Segmentation({self._summary()})"

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.mask, dtype=dtype, copy=copy)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of image and mask."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of `probability`."""
        return self.output.classes

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Class of each pixel, uint8 (uint16 above 256 classes) [height, width].

        With one class: 1 where its probability is above the threshold, else 0. With several: the index of the most
        probable class, 0 being the first name of `classes`. Made once; what is changed in it, by a morphological
        opening perhaps, shows in all that is made of the mask afterwards (all but `cutout` and `threshold`).
        """
        found = self.__dict__.get("_mask")  # not cached_property: in Python 3.11 one lock is for all instances
        if found is None:
            found = self.__dict__.setdefault("_mask", mask_of(self.probability, self.output))
        mask: NDArray[np.uint8] = found
        return mask

    def threshold(self, threshold: float) -> "Segmentation":
        """The same answer with another threshold, between 0 and 1, without running the model again.

        Raises:
            ConfigError: it is out of its bounds, or there are several classes, of which the most probable one is taken.
        """
        if len(self.classes) > 1:
            raise ConfigError(
                f"threshold: is for one class, this model has {len(self.classes)} and takes the most probable; "
                "compare result.probability[index] with a number of your own"
            )
        try:
            return replace(self, output=replace(self.output, threshold=float(threshold)))
        except (ModelError, TypeError, ValueError) as error:
            raise ConfigError(f"threshold: found {threshold!r}, expected a number between 0 and 1") from error

    def region(self, classes: Classes = None) -> NDArray[np.bool_]:
        """Which pixels of the mask are of these classes, bool [height, width].

        Raises:
            ConfigError: there is no such class.
        """
        chosen = self._indices(classes)
        if classes is None or len(self.classes) == 1:
            return self.mask > 0
        region: NDArray[np.bool_] = self.mask == chosen[0]
        for index in chosen[1:]:
            region |= self.mask == index
        return region

    def area(self, classes: Classes = None) -> int:
        """How many pixels are of these classes; raises as `region`."""
        return int(np.count_nonzero(self.region(classes)))

    def box(self, classes: Classes = None) -> tuple[int, int, int, int] | None:
        """Smallest box around these classes: columns x0..x1, rows y0..y1 as (x0, y0, x1, y1), the last ones excluded.

        None if there is no such pixel; `mask[y0:y1, x0:x1]` is what is inside. Raises as `region`.
        """
        return box_of(self.region(classes))

    def polygons(self, classes: Classes = None, tolerance: float = 0.0) -> list[Polygon]:
        """The connected parts of these classes, largest first, each with its holes; see `runtime.images.polygons`.

        Points are float32 [corners, 2] (x, y) in pixels from the top left corner of the image, along the edges of
        pixels. `tolerance`: pixels that an outline may be off where that saves points; 1 smooths steps.

        Raises:
            ConfigError: there is no such class, or `tolerance` is out of its bounds.
        """
        return polygons_of(self.region(classes), tolerance)

    def contours(self, classes: Classes = None, tolerance: float = 0.0) -> list[NDArray[np.float32]]:
        """All outlines of `polygons` in one list, each outer one (clockwise on the screen) before its holes."""
        return [ring for outer, holes in self.polygons(classes, tolerance) for ring in (outer, *holes)]

    def rle(self, classes: Classes = None) -> str:
        """These classes as Carvana's run lengths; see `runtime.rle`. Raises as `region`."""
        return encode(self.region(classes))

    def coco_rle(self, classes: Classes = None, compressed: bool = True) -> dict[str, Any]:
        """These classes as COCO's run lengths, {"size": [height, width], "counts": text}, as pycocotools writes them.

        Not `compressed`, the counts are a list of numbers. Raises as `region`.
        """
        return coco_encode(self.region(classes), compressed)

    def overlay(self, opacity: float = 0.5) -> NDArray[np.uint8]:
        """The image with its foreground tinted, uint8 RGB [height, width, 3]; `opacity` of the tint in 0..1.

        Raises:
            ConfigError: `opacity` is out of its bounds.
        """
        if not 0 <= opacity <= 1:
            raise ConfigError(f"opacity: found {opacity!r}, expected 0 to 1")
        return tinted(self.image, self.mask, opacity)

    def cutout(self, classes: Classes = None) -> NDArray[np.uint8]:
        """The image with all but these classes transparent, uint8 RGBA [height, width, 4].

        Colours are the image's own (alpha is not multiplied in), alpha is 255 times the probability, or the sum of
        their probabilities, rounded. So borders are soft, whatever the threshold. Raises as `region`.
        """
        chosen = self._indices(classes)
        picture = np.empty((*self.size, 4), np.uint8)
        picture[:, :, :3] = self.image
        for rows in strips(self.size):
            share = self.probability[chosen, rows].sum(axis=0)  # [rows, width]
            picture[rows, :, 3] = np.rint(255 * np.fmin(np.fmax(share, 0), 1))  # NaN, too, is transparent
        return picture

    def picture(self) -> Image.Image:
        """The mask as it is saved: 0 and 255 for one class, class indices for several."""
        return Image.fromarray(self.mask * np.uint8(255) if len(self.classes) == 1 else self.mask)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write what the suffix stands for, at the image's own size, and return the path.

        .png .gif .bmp .tif .tiff   the mask: 0 and 255 for one class, class indices for several
        .npy                        `probability`
        .npz                        `probability`, `mask` and `classes`, compressed
        .json                       size, threshold, times; name, area, box and COCO's run lengths of each class

        Raises:
            OutputError: another suffix, or the file cannot be written.
        """
        target = Path(path)
        suffix = target.suffix.lower()
        if suffix in LOSSLESS:
            return save_picture(self.picture(), target)
        if suffix not in _WRITERS:
            raise OutputError(
                f"{target}: would not keep a mask exactly; expected {', '.join(sorted(LOSSLESS))} (mask), .npy, .npz "
                "(probability) or .json (areas, boxes, run lengths); to look at, save Image.fromarray(result.overlay())"
            )
        with replacing(target) as temporary, open(temporary, "wb") as file:
            _WRITERS[suffix](self, file)
        return target

    def to_supervision(self) -> Any:
        """`supervision.Detections` with one detection for each class of the foreground that occurs.

        `xyxy` is `box`, `mask` is `region`, `confidence` the mean probability there, `class_id` the index in `classes`,
        `data["class_name"]` the name.

        Raises:
            ConfigError: the package supervision is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ImportError as error:
            raise ConfigError(f"supervision: cannot be imported ({error}); pip install supervision") from error
        found = [(index, region) for index in self._indices(None) if (region := self.region(index)).any()]
        if not found:
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=np.array([box_of(region) for _, region in found], np.float32),
            mask=np.stack([region for _, region in found]),
            confidence=np.array([self.probability[index][region].mean() for index, region in found], np.float32),
            class_id=np.array([index for index, _ in found]),
            data={"class_name": np.array([self.classes[index] for index, _ in found])},
        )

    def _repr_png_(self) -> bytes:
        return self._preview("PNG", compress_level=1)

    def _repr_html_(self) -> str:
        """The picture with a legend and the times below, since a notebook shows a picture without its `repr`."""
        picture = base64.b64encode(self._preview("JPEG")).decode()
        legend = " ".join(self._entry(index, share) for index, share in self._shares()[:LEGEND])
        times = f", {self.times}" if self.times else ""
        return (
            f'<img src="data:image/jpeg;base64,{picture}"><br>{legend}<br>{self.size[1]}x{self.size[0]} pixels{times}'
        )

    def _entry(self, index: int, share: float) -> str:
        """One class of the legend, after a square of its colour if the overlay gives it one."""
        colour = COLOURS[(index - self._first) % len(COLOURS)]
        square = f'<span style="color:rgb{colour}">&#9632;</span> ' if index >= self._first else ""
        return f"<span>{square}{html.escape(self.classes[index])} {share:.1%}</span>"

    def _preview(self, kind: str, **options: int) -> bytes:
        """An overlay of at most `PREVIEW` pixels, encoded; image and mask are shrunk first, so it is cheap."""
        scale = min(1.0, PREVIEW / max(self.size))
        size = max(1, round(self.size[0] * scale)), max(1, round(self.size[1] * scale))
        file = io.BytesIO()
        Image.fromarray(tinted(resize(self.image, size), shrunk(self.mask, size), 0.5)).save(file, kind, **options)
        return file.getvalue()

    def _summary(self) -> str:
        height, width = self.size
        shares = self._shares()
        names = [f"{' '.join(self.classes[index].split())} {share:.1%}" for index, share in shares[:4]]
        more = [f"{len(shares) - 4} more"] if len(shares) > 4 else []
        times = [f"{self.times.total:.1f} ms"] if self.times else []
        return ", ".join([f"{width}x{height}", *names, *more, *times])

    def _shares(self) -> list[tuple[int, float]]:
        """(index, share of the pixels in 0..1) of the classes that occur, largest first; the only class anyway."""
        if len(self.classes) == 1:
            return [(0, self.area() / self.mask.size)]
        parts = (self.mask[rows].reshape(-1) for rows in strips(self.size))
        counts = np.sum([np.bincount(part, minlength=len(self.classes)) for part in parts], axis=0)
        order = np.argsort(-counts, kind="stable").tolist()
        return [(index, counts[index] / self.mask.size) for index in order if counts[index]]

    @property
    def _first(self) -> int:
        """Index of the first class of the foreground."""
        return 1 if len(self.classes) > 1 else 0

    def _indices(self, classes: Classes) -> list[int]:
        if classes is None:
            return list(range(self._first, len(self.classes)))
        if isinstance(classes, str) or not isinstance(classes, Iterable):
            return [self._index(classes)]
        chosen = list(dict.fromkeys(map(self._index, classes)))
        if not chosen:
            raise ConfigError("classes: found none of them, expected at least one, or None for the foreground")
        return chosen

    def _index(self, wanted: Any) -> int:
        if isinstance(wanted, str) and wanted in self.classes:
            return self.classes.index(wanted)
        try:
            index = -1 if isinstance(wanted, str | bool) else operator.index(wanted)
        except TypeError:
            index = -1
        if not 0 <= index < len(self.classes):
            names = ", ".join(map(repr, self.classes[:20])) + (", ..." if len(self.classes) > 20 else "")
            raise ConfigError(
                f"classes: found {wanted!r}, expected one of {names}, or an index from 0 to {len(self.classes) - 1}"
            )
        return index


def mask_of(probability: NDArray[np.float32], output: OutputSpec) -> NDArray[np.uint8]:
    """Threshold or arg-max float32 [classes, height, ...] to class indices [height, ...]; see `Segmentation.mask`."""
    if output.activation == "sigmoid":
        above: NDArray[np.uint8] = (probability[0] > output.threshold).view(np.uint8)
        return above
    index = np.empty(probability.shape[1:], np.uint8 if len(output.classes) <= 256 else np.uint16)
    for rows in strips(probability.shape[1:]):
        index[rows] = probability[:, rows].argmax(axis=0)  # int64, and a copy of what it looks at
    return index


def _write_json(result: Segmentation, file: io.BufferedWriter) -> None:
    several = len(result.classes) > 1
    record = {
        "size": list(result.size),
        "threshold": None if several else result.output.threshold,
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


def _write_npy(result: Segmentation, file: io.BufferedWriter) -> None:
    np.save(file, result.probability)


def _write_npz(result: Segmentation, file: io.BufferedWriter) -> None:
    np.savez_compressed(file, probability=result.probability, mask=result.mask, classes=np.array(result.classes))


_WRITERS: Mapping[str, Callable[[Segmentation, io.BufferedWriter], None]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".json": _write_json,
}
