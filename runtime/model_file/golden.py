"""The golden sample: small images and their probabilities, carried in the ONNX file.

The probabilities are PyTorch's. A file below fp32 holds its own answer at export instead: its gate judges the loss of
precision, and a device that answers differently from the exported file is wrong.

A replay on the user's machine shows a wrong driver, a broken kernel or a stale engine before the first real image does.
The images are synthetic, so no training image travels with the model. They are chosen so that every channel of the
network shows in the answers (`export.golden_choice`). A CPU is exact, so the first one proves enough there; on a GPU,
where a small fault cannot be told from rounding, the others are replayed too.
"""

import base64
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.card import Bf16Permission, InputSpec, ModelCard, read_permission
from runtime.errors import ModelError

GOLDEN_KEY = "unet.golden"
"""Key of the golden sample in an ONNX file's metadata."""

GOLDEN_SIZE = (56, 88)
"""(height, width): small, not square, and not multiples of 16, so that padding and cropping are replayed, too."""

MAX_BYTES = 64 * 2**20

ROUNDING = 4.0
"""Factor between what two ways to compute a file below fp32 differed by where it was exported, and what devices may."""

BF16_ROUNDING = 2.0
"""Factor between bf16's error where a file was exported and on other processors, which round sums in another order."""

LEAST_GPU_TOLERANCE = 5e-3
"""Error that passes on a GPU for any network."""

NetworkFunction = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 [batch, height, width, channels] -> probability float32 [batch, classes, height, width]; thread-safe."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """`image` uint8 [height, width, channels]; `probability` float32 [classes, height, width].

    `others` are further samples of the same shapes for devices that compute coarsely, and have none themselves.
    `tf32_error` is the largest error of the network in TF32, simulated on all these images; None if nobody knows it.
    `bf16` is the card's permission of that name, which travels here.
    """

    image: NDArray[np.uint8]
    probability: NDArray[np.float32]
    others: tuple["Golden", ...] = ()
    tf32_error: float | None = None
    bf16: Bf16Permission | None = None

    @classmethod
    def made(cls, image: NDArray[np.uint8], run: NetworkFunction, size: tuple[int, int] | None = None) -> "Golden":
        """Make the sample of an image and the answer of `run` to it; `size` is as of `shown`."""
        height, width, _ = image.shape
        return cls(image=image, probability=run(extended(image, size)[None])[0, :, :height, :width])

    def shown(self, size: tuple[int, int] | None) -> NDArray[np.uint8]:
        """Return the image as a file that takes images of one `size` is shown it; see `extended`."""
        return extended(self.image, size)

    def error(self, run: NetworkFunction, size: tuple[int, int] | None = None) -> float:
        """Return the largest |p - golden| of `run`, which maps uint8 [1, h, w, c] to float32 [1, classes, h, w].

        Returns infinity for NaN, or for an answer of another shape. `size` is as of `shown`; the answer is compared
        where the image is.
        """
        image = self.shown(size)
        classes, height, width = self.probability.shape
        answer = run(image[None])
        if answer.shape != (1, classes, *image.shape[:2]):
            return float("inf")
        worst = float(np.abs(answer[0, :, :height, :width] - self.probability).max())
        return worst if np.isfinite(worst) else float("inf")

    def largest_error(self, run: NetworkFunction, size: tuple[int, int] | None = None) -> float:
        """Return the largest `error` of this sample and all `others`."""
        return max(sample.error(run, size) for sample in (self, *self.others))

    def to_json(self) -> str:
        """Return all arrays with their shapes, as base64 of zlib-compressed bytes, and what is known of rounding."""
        data: dict[str, Any] = self._packed()
        if self.others:
            data["others"] = [other._packed() for other in self.others]
        if self.tf32_error is not None:
            data["tf32_error"] = self.tf32_error
        if self.bf16 is not None:
            data["bf16"] = asdict(self.bf16)
        return json.dumps(data, sort_keys=True)

    def _packed(self) -> dict[str, Any]:
        return {"image": pack(self.image), "probability": pack(self.probability)}

    @classmethod
    def from_json(cls, text: str) -> "Golden":
        """Read the text of `to_json`, of which files of older versions hold one image and its answer only.

        Raises:
            ModelError: the sample is damaged.
        """
        try:
            data = json.loads(text)
            first = cls._unpacked(data)
            parts = list(data.get("others", ()))
            if any(part[name]["shape"] != data[name]["shape"] for part in parts for name in ("image", "probability")):
                raise ValueError("its images differ in size")
            if (1 + len(parts)) * (first.image.nbytes + first.probability.nbytes) > 2 * MAX_BYTES:
                raise ValueError("its images are too large")
            others = [cls._unpacked(part) for part in parts]
            tf32_error = data.get("tf32_error")
            if tf32_error is not None and not (type(tf32_error) in (int, float) and 0 <= tf32_error <= 1):
                raise ValueError("its error in TF32 is not a number from 0 to 1")
            bf16 = read_permission(data["bf16"]) if "bf16" in data else None
        except (ValueError, KeyError, TypeError, IndexError, zlib.error, RecursionError) as error:
            raise ModelError(f"golden sample: is damaged ({error}); export the model again") from error
        return replace(first, others=tuple(others), tf32_error=tf32_error, bf16=bf16)

    @classmethod
    def _unpacked(cls, data: dict[str, Any]) -> "Golden":
        image = unpack(data["image"], np.uint8)
        probability = unpack(data["probability"], np.float32)
        if image.shape[:2] != probability.shape[1:]:
            raise ValueError("image and probabilities differ in size")
        if not np.isfinite(probability).all():
            raise ValueError("its probabilities are not finite")
        return cls(image=image, probability=probability)


def allowed_error(device_tolerance: float, card: ModelCard, *, bf16: bool = False) -> float:
    """Return the largest |p - golden| that passes on a device whose tolerance for fp32 files is given.

    A deep network that rounds coarsely by itself was proved with a tolerance of its own, which counts here too.
    A device that computes in `bf16`, as the card permits, may be off by twice what the export saw of bf16 more.
    """
    if bf16 and card.bf16 is not None:
        return allowed_error(device_tolerance, card) + BF16_ROUNDING * card.bf16.golden_error
    if card.proof is None:
        return device_tolerance
    if card.proof.tolerance is not None:
        return max(device_tolerance, card.proof.tolerance)
    return device_tolerance + ROUNDING * card.proof.golden_error


def extended(image: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return an image [h, w, c] with its right and bottom edges repeated up to `size`, (height, width), if any."""
    if size is None:
        return image
    down, right = (whole - side for whole, side in zip(size, image.shape[:2], strict=True))
    return np.pad(image, ((0, down), (0, right), (0, 0)), mode="edge")


def tf32_tolerance(tf32_error: float | None, usual: float) -> float:
    """Return the largest |p - golden| that passes on a GPU, where `usual` passes for a network that nobody knows.

    The simulation cuts numbers off, which makes five to ten times the error of rounding them, as NVIDIA's libraries do.
    So four times its error is generous, and where that is more than `usual`, the error itself has to pass.
    """
    if tf32_error is None:
        return usual
    return max(LEAST_GPU_TOLERANCE, min(4 * tf32_error, usual), tf32_error)


def golden_size(spec: InputSpec) -> tuple[int, int]:
    """Return the (height, width) of a golden sample: `GOLDEN_SIZE`, or the next larger one that a network takes."""
    height, width = (max(sides) for sides in zip(GOLDEN_SIZE, spec.min_size, strict=True))
    if spec.padded:
        return height, width
    return -(-height // spec.stride) * spec.stride, -(-width // spec.stride) * spec.stride


def golden_image(channels: int, size: tuple[int, int] = GOLDEN_SIZE) -> NDArray[np.uint8]:
    """The image of every golden sample, uint8 [*`size`, channels]; see `golden_size`."""
    return synthetic_image(*size, channels, seed=20150518)


def synthetic_image(height: int, width: int, channels: int, seed: int) -> NDArray[np.uint8]:
    """Draw ramps, a disc, a checkerboard and noise, uint8 [height, width, channels]: edges and flat areas.

    The disc is in the second of three channels; with more of them, every third has one, each at another place.
    """
    if channels not in (1, 3):
        threes = [synthetic_image(height, width, 3, seed + 1_000 * index) for index in range(-(-channels // 3))]
        return np.ascontiguousarray(np.concatenate(threes, axis=2)[:, :, :channels])
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    centre_y, centre_x = random.uniform(0.2, 0.8, 2) * (height, width)
    disc = (y - centre_y) ** 2 + (x - centre_x) ** 2 < (0.3 * min(height, width)) ** 2
    planes = [
        255 * x / max(width - 1, 1),
        np.where(disc, 230, 255 * y / max(height - 1, 1)),
        np.where((x // 5 + y // 3) % 2 == 0, 60, 190),
    ]
    noise = random.integers(-20, 21, (height, width, 3))
    image = np.clip(np.stack(planes, axis=-1) + noise, 0, 255).astype(np.uint8)
    return image if channels == 3 else image[:, :, 1:2].copy()


def pack(array: NDArray[Any]) -> dict[str, Any]:
    """Encode an array for JSON."""
    raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"shape": list(array.shape), "zlib": base64.b64encode(zlib.compress(raw, 9)).decode()}


def unpack(data: dict[str, Any], dtype: type) -> NDArray[Any]:
    """Decode an array of three dimensions, at most `MAX_BYTES` large; raises a ValueError if it is damaged."""
    kind = np.dtype(dtype).newbyteorder("<")
    shape = tuple(data["shape"])
    if len(shape) != 3 or not all(type(side) is int and 1 <= side <= 4096 for side in shape):
        raise ValueError("its shape is out of bounds")
    size = int(np.prod(shape)) * kind.itemsize
    if size > MAX_BYTES:
        raise ValueError("its shape is out of bounds")
    raw = zlib.decompressobj().decompress(base64.b64decode(data["zlib"], validate=True), size + 1)
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes, expected {size}")
    return np.frombuffer(raw, kind).reshape(shape).astype(dtype)
