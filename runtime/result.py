"""Segmentation: the answer for one image, at that image's own size."""

import importlib
import io
import operator
import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from runtime.card import OutputSpec
from runtime.errors import ConfigError, ImageError, OutputError
from runtime.image import EncodedImage, resize
from runtime.images.cutout import REACH, Colour, check_background, cut_out, edge_alpha
from runtime.images.overlay import COLOURS, OPACITY, shrunk, strips, tinted
from runtime.images.palette import ClassColour, legend_of
from runtime.images.png import encode_png
from runtime.images.polygons import Polygon, box_of, polygons_of
from runtime.output_formats import Format, format_for, format_named
from runtime.rle import coco_encode, encode
from runtime.support.files import reason_of

if TYPE_CHECKING:
    from PIL import Image

LEGEND = 20
"""Maximum number of classes in a notebook's legend."""

PREVIEW = 600
"""Maximum length of the longer side of a notebook's picture, in pixels."""

Classes = str | int | Iterable[str | int] | None
"""Selection of classes: a name of `Segmentation.classes`, its index, several of these, or None for the foreground. The
foreground is the only class; with several classes, all but the first; with classes that overlap, all of them."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds that each stage of an answer took.

    The stages: `decode` the file to pixels, `fit` them to the model, `transfer` to the device and back, `infer` on the
    device, `restore` the probabilities to the image's size. Where a batch goes through a stage together, each image
    gets an equal share of the time.
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

    Several threads may use it at once, and it can be pickled. `np.asarray(result)` is the mask.

    Attributes:
        probability: float32 [classes, height, width], 0..1.
        image: the decoded image, upright, uint8 [height, width, 3 or 1]; of a model of raw channels, all of them. With
            `decode="scaled"` it is decoded when it is first asked for.
        output: names of the classes, activation and threshold.
        times: duration of each stage, or None.

    Raises:
        ImageError: `probability` is not float32, or does not have the image's size.
    """

    probability: NDArray[np.float32]
    image: NDArray[np.uint8]
    output: OutputSpec
    times: Times | None = None

    def __post_init__(self) -> None:
        expected = len(self.classes), *self.__dict__["image"].shape[:2]
        if self.probability.dtype != np.float32 or self.probability.shape != expected:
            raise ImageError(
                f"probability: found {self.probability.dtype} {list(self.probability.shape)}, expected float32 "
                f"{list(expected)}: classes, height and width of the image"
            )

    def __repr__(self) -> str:
        height, width = self.shape
        shares = self._shares()
        names = [f"{' '.join(self.classes[index].split())} {share:.1%}" for index, share in shares[:4]]
        more = [f"{len(shares) - 4} more"] if len(shares) > 4 else []
        times = [f"{self.times.total:.1f} ms"] if self.times else []
        return f"Segmentation({', '.join([f'{width}x{height}', *names, *more, *times])})"

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.mask, dtype=dtype, copy=copy)

    @property
    def is_fast_decoded(self) -> bool:
        """True if a JPEG file was decoded at a part of its size, and `image` was not asked for yet."""
        return isinstance(self.__dict__["image"], EncodedImage)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of image and mask, as of an array [height, width]."""
        return self.probability.shape[1], self.probability.shape[2]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width): the older name of `shape`, which goes with version 1. PIL's `size` is (width, height)."""
        return self.shape

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of `probability`."""
        return self.output.classes

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Class of each pixel, uint8 (uint16 above 256 classes) [height, width]; or uint8 [classes, height, width].

        With one class: 1 where its probability is above the threshold, else 0. With several: the index of the most
        probable class; 0 is the first name in `classes`. With classes that overlap (activation "sigmoids"): a plane
        for each class, which is that of one class. The array is made once. A change to it, such as a
        morphological opening, changes everything that is derived from it later, but for `threshold` and soft cut-outs.
        """
        found = self.__dict__.get("_mask")  # not cached_property: in Python 3.11 all instances share one lock
        if found is None:
            found = self.__dict__.setdefault("_mask", mask_of(self.probability, self.output))
        mask: NDArray[np.uint8] = found
        return mask

    def threshold(self, threshold: float) -> "Segmentation":
        """Return the same answer with another threshold, between 0 and 1, without running the model again.

        Raises:
            ConfigError: it is out of bounds, or the model takes the most probable one of several classes.
        """
        image = self.__dict__["image"]  # an image that is still encoded stays so
        return replace(self, output=self.output.with_threshold(threshold), image=image)

    def region(self, classes: Classes = None) -> NDArray[np.bool_]:
        """Pixels of the mask that belong to these classes, bool [height, width].

        Raises:
            ConfigError: a class does not exist.
        """
        chosen = self._indices(classes)
        if not self.output.overlapping and (classes is None or len(self.classes) == 1):
            return self.mask > 0
        region = np.zeros(self.shape, np.bool_)
        for index in chosen:
            region |= self.mask[index] > 0 if self.output.overlapping else self.mask == index
        return region

    def area(self, classes: Classes = None) -> int:
        """Count the pixels of these classes; raises like `region`."""
        return int(np.count_nonzero(self.region(classes)))

    def box(self, classes: Classes = None) -> tuple[int, int, int, int] | None:
        """Smallest box around these classes, (x0, y0, x1, y1); columns x0..x1 and rows y0..y1 without the last ones.

        `mask[y0:y1, x0:x1]` is its content. None if the classes have no pixel. Raises like `region`.
        """
        return box_of(self.region(classes))

    def polygons(self, classes: Classes = None, tolerance: float = 0.0) -> list[Polygon]:
        """The connected parts of these classes, largest first, each with its holes; see `runtime.images.polygons`.

        Points are float32 [corners, 2] (x, y) in pixels from the top left corner of the image. They follow the edges of
        pixels. `tolerance` is the distance, in pixels, that an outline may move to save points; 1 smooths steps.

        Raises:
            ConfigError: a class does not exist, or `tolerance` is out of bounds.
        """
        return polygons_of(self.region(classes), tolerance)

    def contours(self, classes: Classes = None, tolerance: float = 0.0) -> list[NDArray[np.float32]]:
        """All outlines of `polygons` in one list. Each outer outline (clockwise on the screen) precedes its holes."""
        return [ring for outer, holes in self.polygons(classes, tolerance) for ring in (outer, *holes)]

    def rle(self, classes: Classes = None) -> str:
        """These classes as Carvana's run lengths; see `runtime.rle`. Raises like `region`."""
        return encode(self.region(classes))

    def coco_rle(self, classes: Classes = None, compressed: bool = True) -> dict[str, Any]:
        """These classes as COCO's run lengths, {"size": [height, width], "counts": text}, as pycocotools writes them.

        With `compressed` false the counts are a list of numbers. Raises like `region`.
        """
        return coco_encode(self.region(classes), compressed)

    def overlay(self, opacity: float = OPACITY) -> NDArray[np.uint8]:
        """The image with its foreground tinted, uint8 RGB [height, width, 3]; `opacity` of the tint is 0 to 1.

        Where classes overlap, a pixel has the colour of the most probable one. Of an image of more than three
        channels the first three are shown, and of one of two their mean.

        Raises:
            ConfigError: `opacity` is out of bounds.
        """
        if not 0 <= opacity <= 1:
            raise ConfigError(f"opacity: found {opacity!r}, expected 0 to 1")
        return tinted(self.image, self._colours(), opacity)

    def cutout(
        self, classes: Classes = None, *, soft: bool = False, background: Colour = None, keep_colours: bool = False
    ) -> NDArray[np.uint8]:
        """The image with everything but these classes transparent, uint8 RGBA [height, width, 4].

        Alpha is 255 in `region` and 0 outside, with a soft edge of at most `EDGE` pixels to each side; pixels of the
        region have an alpha above 127. Colours are the image's own, or as in `overlay`; alpha is not multiplied in.

        Args:
            classes: the classes to keep.
            soft: alpha is `probability_of`, whatever the threshold, so a doubtful background shines through.
            background: a colour to lay the classes on; the picture is then RGB [height, width, 3]. See `Colour`.
            keep_colours: keep the colours of pixels whose alpha is 0; otherwise they are black.

        Raises:
            ConfigError: a class does not exist, `background` is not a colour, or it has no transparent pixels to keep
                the colours of.
        """
        colour = check_background(background, keep_colours)
        alpha = self.probability_of(classes, np.uint8) if soft else self._edge_alpha(classes)
        return cut_out(self.image, alpha, colour, keep_colours)

    def _edge_alpha(self, classes: Classes) -> NDArray[np.uint8]:
        """Alpha of a cut-out with a soft edge, uint8 [height, width]; see `runtime.images.cutout.edge_alpha`."""
        chosen, region = self._indices(classes), self.region(classes)
        others = [index for index in range(len(self.classes)) if index not in chosen]
        alpha = np.empty(self.shape, np.uint8)
        for rows in strips(self.shape):
            first = max(0, rows.start - REACH)
            wider = slice(first, rows.stop + REACH)  # alpha depends on the pixels around
            margin = np.nan_to_num(self.probability[chosen, wider].max(axis=0))  # [rows, width]
            if self.output.thresholded:
                margin -= np.float32(self.output.threshold)
            else:  # the most probable class changes where this is 0
                margin -= np.nan_to_num(self.probability[others, wider].max(axis=0, initial=0))
            alpha[rows] = edge_alpha(margin, region[wider])[rows.start - first :][: rows.stop - rows.start]
        return alpha

    def probability_of(self, classes: Classes, dtype: type[np.uint8] | type[np.uint16]) -> NDArray[Any]:
        """Probability of these classes, from 0 to the largest value of `dtype`, rounded, [height, width].

        It is the sum of their probabilities; of classes that overlap, the largest one. Raises like `region`.
        """
        chosen = self._indices(classes)
        together = np.max if self.output.overlapping else np.sum
        found, top = np.empty(self.shape, dtype), np.iinfo(dtype).max
        for rows in strips(self.shape):
            share = together(self.probability[chosen, rows], axis=0)  # [rows, width]
            found[rows] = np.rint(top * np.fmin(np.fmax(share, 0), 1))  # NaN is 0
        return found

    def picture(self) -> "Image.Image":
        """The mask as a picture: 0 and 255 for one class, class indices for several.

        Raises:
            ConfigError: the classes overlap, so that one picture cannot hold them.
        """
        if self.output.overlapping:
            raise ConfigError("picture: holds one class for each pixel, and this model's overlap; see pictures()")
        return self.pictures()[0]

    def pictures(self) -> "list[Image.Image]":
        """The mask as one picture or, of classes that overlap, a picture for each: 0 and 255, or class indices."""
        from PIL import Image

        if not self.output.thresholded:
            return [Image.fromarray(self.mask)]
        return [Image.fromarray(plane * np.uint8(255)) for plane in self.mask.reshape(-1, *self.shape)]

    def legend(self) -> list[ClassColour]:
        """The value, class name and colour (RGB) of each value in a picture of the format "palette".

        Raises:
            OutputError: the format cannot hold this answer: the classes overlap, or are more than 256.
        """
        format_named("palette").check(self.output, "legend")
        return legend_of(self.output)

    @overload
    def save(self, path: str | os.PathLike[str], format: str | Format | None = None) -> Path: ...
    @overload
    def save(self, path: IO[bytes], format: str | Format | None = None) -> None: ...
    def save(
        self,
        path: str | os.PathLike[str] | IO[bytes],
        format: str | Format | None = None,  # noqa: A002
    ) -> Path | None:
        """Write a file at the image's own size and return its path. The suffix chooses one of `runtime.output_formats`:

        .png .gif .bmp .tif .tiff   the mask: 0 and 255 for one class, class indices for several; classes that overlap
                                    are pages of a .tif, and the others refuse them
        .npy                        `probability`
        .npz                        `probability`, `mask` and `classes`, compressed
        .json                       size, threshold, times; name, area, box and COCO's run lengths of each class
        .geojson                    a polygon in pixels for each connected part of the foreground's classes

        Args:
            path: path, or a binary file object, which stays open; one without a `name` needs `format`.
            format: name of a format in `runtime.output_formats.FORMATS` ("mask", "palette", "cutout", ...), or a suffix
                without its dot ("png"), whatever the suffix of `path` is; or a `Format`, such as that of
                `runtime.output_formats.cutout_format(background="white")`.

        Raises:
            OutputError: no format has this suffix, it cannot hold this answer, or the file cannot be written.
        """
        if isinstance(path, str | os.PathLike):
            target = Path(path)
            (format_named(format) if format else format_for(target)).save(self, target, follow=True)
            return target
        name = getattr(path, "name", None)
        if not format and not isinstance(name, str):
            raise OutputError('file object: has no name that tells its format; give one, such as format="png"')
        form = format_named(format) if format else format_for(Path(str(name)))
        try:
            path.write(form.encode(self))
        except TypeError as error:
            raise OutputError(f"{name or 'file object'}: is no binary file; open it with mode 'wb'") from error
        except OSError as error:
            raise OutputError(f"{name or 'file object'}: cannot be written ({reason_of(error)})") from error
        return None

    def to_supervision(self) -> Any:
        """Return `supervision.Detections` with one detection for each foreground class that occurs.

        `xyxy` is `box`, `mask` is `region`, `confidence` is the mean probability in the region, `class_id` is the index
        in `classes`, `data["class_name"]` is the name.

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
        return encode_png(self._preview())

    def _repr_html_(self) -> str:
        """The picture with a legend and the times below it; a notebook shows a bare picture without its `repr`."""
        import base64
        import html

        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(self._preview()).save(file, "JPEG")
        legend = []
        for index, share in self._shares()[:LEGEND]:
            colour = COLOURS[(index - self._first) % len(COLOURS)]
            square = f'<span style="color:rgb{colour}">&#9632;</span> ' if index >= self._first else ""
            legend.append(f"<span>{square}{html.escape(self.classes[index])} {share:.1%}</span>")
        height, width = self.shape
        return (
            f'<img src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"><br>{" ".join(legend)}<br>'
            f"{width}x{height} pixels{f', {self.times}' if self.times else ''}"
        )

    def _preview(self) -> NDArray[np.uint8]:
        """Overlay with sides of at most `PREVIEW` pixels, uint8 RGB; image and mask are shrunk first to save time."""
        scale = min(1.0, PREVIEW / max(self.shape))
        size = max(1, round(self.shape[0] * scale)), max(1, round(self.shape[1] * scale))
        return tinted(resize(self.image, size), shrunk(self._colours(), size))

    def _colours(self) -> NDArray[np.uint8]:
        """Number of the colour of each pixel, from 1, [height, width]; 0 is without colour."""
        if not self.output.overlapping:
            return self.mask
        found = np.empty(self.shape, np.uint8 if len(self.classes) < 256 else np.uint16)
        for rows in strips(self.shape):
            chosen = self.mask[:, rows] > 0
            best = np.where(chosen, self.probability[:, rows], -np.inf).argmax(axis=0)
            found[rows] = np.where(chosen.any(axis=0), best + 1, 0)
        return found

    def _shares(self) -> list[tuple[int, float]]:
        """(index, share of the pixels, 0..1) of the classes that occur, largest share first; a single class always."""
        pixels = self.shape[0] * self.shape[1]
        if len(self.classes) == 1:
            return [(0, self.area() / pixels)]
        if self.output.overlapping:
            counts = np.count_nonzero(self.mask.reshape(len(self.classes), -1), axis=1)
        else:
            parts = (self.mask[rows].reshape(-1) for rows in strips(self.shape))
            counts = np.sum([np.bincount(part, minlength=len(self.classes)) for part in parts], axis=0)
        order = np.argsort(-counts, kind="stable").tolist()
        return [(index, counts[index] / pixels) for index in order if counts[index]]

    @property
    def _first(self) -> int:
        """Index of the first class of the foreground."""
        return self.output.first_foreground

    def _indices(self, classes: Classes) -> list[int]:
        """Indices of the selected classes, each once."""
        if classes is None:
            return list(range(self._first, len(self.classes)))
        chosen: dict[int, None] = {}
        for wanted in [classes] if isinstance(classes, str) or not isinstance(classes, Iterable) else classes:
            if isinstance(wanted, str) and wanted in self.classes:
                chosen[self.classes.index(wanted)] = None
                continue
            try:
                index = -1 if isinstance(wanted, str | bool) else operator.index(wanted)
            except TypeError:
                index = -1
            if not 0 <= index < len(self.classes):
                names = ", ".join(map(repr, self.classes[:20])) + (", ..." if len(self.classes) > 20 else "")
                raise ConfigError(
                    f"classes: found {wanted!r}, expected one of {names}, or an index from 0 to {len(self.classes) - 1}"
                )
            chosen[index] = None
        if not chosen:
            raise ConfigError("classes: found an empty list, expected at least one class, or None for the foreground")
        return list(chosen)


class ImageOnDemand:
    """The attribute `Segmentation.image`: an array, or an `EncodedImage` that is decoded when it is first read."""

    def __get__(self, result: Segmentation, _: type) -> NDArray[np.uint8]:
        found = result.__dict__["image"]
        if isinstance(found, EncodedImage):
            found = result.__dict__["image"] = found.decode()
        image: NDArray[np.uint8] = found
        return image

    def __set__(self, result: Segmentation, image: NDArray[np.uint8] | EncodedImage) -> None:
        result.__dict__["image"] = image


Segmentation.image = ImageOnDemand()  # type: ignore[assignment]  # a field for all others


def mask_of(probability: NDArray[np.float32], output: OutputSpec) -> NDArray[np.uint8]:
    """Turn float32 [classes, height, ...] into a mask by threshold or argmax, as for `Segmentation.mask`."""
    if output.thresholded:
        above: NDArray[np.uint8] = (probability > output.threshold).view(np.uint8)
        return above if output.overlapping else above[0]
    index = np.empty(probability.shape[1:], np.uint8 if len(output.classes) <= 256 else np.uint16)
    for rows in strips(probability.shape[1:]):
        index[rows] = probability[:, rows].argmax(axis=0)  # in strips, since argmax gives int64 and copies its input
    return index
