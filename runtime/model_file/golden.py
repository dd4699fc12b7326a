"""The golden sample: one small image and the probabilities that belong to it, carried in the ONNX file.

They are PyTorch's, or in a file below fp32 its own where it was exported: what it lost is judged by its gate, and
a device that answers otherwise than the file did is wrong however little the precision is worth.

Replaying it on the machine at hand shows a wrong driver, a broken kernel or a stale engine before the first user's
picture does. The image is synthetic, so no training picture travels with the model.
"""

import base64
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ModelError

GOLDEN_KEY = "unet.golden"
"""Key of the golden sample in an ONNX file's metadata."""

GOLDEN_SIZE = (56, 88)
"""Height and width: small, not square, and no multiple of 16, so that padding and cropping are replayed too."""

MAX_BYTES = 64 * 2**20

NetworkFunction = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 [batch, height, width, channels] -> probability float32 [batch, classes, height, width]; thread-safe."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """`image` uint8 [height, width, channels]; `probability` float32 [classes, height, width]."""

    image: NDArray[np.uint8]
    probability: NDArray[np.float32]

    def error(self, run: NetworkFunction) -> float:
        """Largest |p - golden| when `run` (uint8 [1, h, w, c] -> float32 [1, classes, h, w]) answers; NaN is inf."""
        answer = run(self.image[None])
        if answer.shape != (1, *self.probability.shape):
            return float("inf")
        worst = float(np.abs(answer[0] - self.probability).max())
        return worst if np.isfinite(worst) else float("inf")

    def to_json(self) -> str:
        """Both arrays as zlib-compressed base64 with their shapes."""
        return json.dumps({"image": _pack(self.image), "probability": _pack(self.probability)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Golden":
        """Read what `to_json` wrote.

        Raises:
            ModelError: the sample is damaged.
        """
        try:
            data = json.loads(text)
            image = _unpack(data["image"], np.uint8)
            probability = _unpack(data["probability"], np.float32)
            if image.shape[:2] != probability.shape[1:]:
                raise ValueError("image and probabilities differ in size")
            if not np.isfinite(probability).all():
                raise ValueError("its probabilities are not finite")
        except (ValueError, KeyError, TypeError, IndexError, zlib.error, RecursionError) as error:
            raise ModelError(f"golden sample: is damaged ({error}); export the model again") from error
        return cls(image=image, probability=probability)


def golden_image(channels: int) -> NDArray[np.uint8]:
    """The image of every golden sample, uint8 [`GOLDEN_SIZE`, channels]."""
    return synthetic_image(*GOLDEN_SIZE, channels, seed=20150518)


def synthetic_image(height: int, width: int, channels: int, seed: int) -> NDArray[np.uint8]:
    """Ramps, a disc, a checkerboard and noise, uint8 [height, width, 1 or 3]: it has edges and flat areas."""
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


def _pack(array: NDArray[Any]) -> dict[str, Any]:
    raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"shape": list(array.shape), "zlib": base64.b64encode(zlib.compress(raw, 9)).decode()}


def _unpack(data: dict[str, Any], dtype: type) -> NDArray[Any]:
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
