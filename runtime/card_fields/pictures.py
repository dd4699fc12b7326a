"""Input and output: the image that a network takes, and the meaning of its probabilities."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from runtime.card_fields.checks import CHANNEL_COUNT, CHECK, MAX_CHANNELS, MAX_CLASSES, MAX_NAME, MAX_SIDE, WHEN_SET
from runtime.errors import ConfigError, ModelError

MAX_STRIDE = 1_024
MIN_SCALE = 1 / 64
MAX_FIXED_BATCH = 1_024
MAX_LEVEL = 65_535

Channels = Literal["RGB", "L"]
"""Channels of pictures: colour or grey."""
InputChannels = Channels | Literal["raw"]
"""Channels of a network's input: of pictures, or all that an array or a file has, as they are stored."""
Levels = tuple[int, int]
"""(black, white): the stored values of a picture that become 0 and 255."""
Fit = Literal["stretch", "letterbox", "native"]
Activation = Literal["sigmoid", "softmax", "sigmoids"]
"""Probabilities of one class; of several, of which a pixel has exactly one; or of several independent ones."""
Probabilities = Literal["softmax", "sigmoids"]
"""Activations of several classes."""

FixedShape = tuple[int, int, int]
"""(batch, height, width) of the only batches that a file takes."""

NEVER_PADDED = "since the network looks at the whole picture at once, so that padding would change all of its answers"
"""Reason why sizes have to be multiples of the stride, where `InputSpec.padded` is False; it ends a message."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The image that the graph expects.

    Attributes:
        size: (height, width) in training.
        channels: "RGB", "L" (grey) or "raw" (all channels of arrays and files, as many as `mean` has values).
        mean: of each channel, for values scaled to 0..1.
        std: of each channel, for values scaled to 0..1.
        fit: treatment of images with another size. "stretch" resizes them, "letterbox" keeps their aspect ratio and
            pads, "native" leaves them as they are, or at a fraction of that: `scale`.
        scale: with fit "native", fraction of an image's own height and width that the network sees.
        stride: divisor of the network's input height and width; the graph pads to it.
        padded: False for a network that looks at the whole picture at once, as one that normalises over it does.
            Padding would change all of its answers, so images have to have sizes that are multiples of the stride.
        min_size: (height, width) of the smallest image that the network takes.
        fixed_batch: number of images in a batch of a file that takes one shape only, in which all images have `size`;
            None for files that take any number of images of any size.
        levels: (black, white), the stored integers that become 0 and 255; those beyond become 0 or 255. None for the
            whole range of their type. Pictures of 12 bits in files of 16 bits have (0, 4095).
    """

    size: tuple[int, int] = (160, 240)
    channels: InputChannels = "RGB"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    fit: Fit = "stretch"
    scale: float = 1.0
    stride: int = 16
    padded: bool = True
    min_size: tuple[int, int] = (1, 1)
    fixed_batch: int | None = None
    levels: Levels | None = field(default=None, metadata={WHEN_SET: True})

    def __post_init__(self) -> None:
        CHECK.length("input.size", self.size, 2, 2)
        for side in self.size:
            CHECK.integer("input.size", side, 1, MAX_SIDE)
        CHECK.choice("input.channels", self.channels, (*get_args(Channels), "raw"))
        count = CHANNEL_COUNT.get(self.channels)
        CHECK.length("input.mean", self.mean, count or 1, count or MAX_CHANNELS)
        count = len(self.mean)
        CHECK.length("input.std", self.std, count, count)
        for mean in self.mean:
            CHECK.number("input.mean", mean, -1e3, 1e3)
        for std in self.std:
            CHECK.number("input.std", std, 1e-6, 1e3)
        CHECK.choice("input.fit", self.fit, get_args(Fit))
        CHECK.number("input.scale", self.scale, MIN_SCALE, 1)
        if self.scale != 1 and self.fit != "native":
            raise CHECK.refusal("input.scale", self.scale, f"1 with fit {self.fit}")
        CHECK.integer("input.stride", self.stride, 1, MAX_STRIDE)
        CHECK.choice("input.padded", self.padded, (True, False))
        if not self.padded and any(side % self.stride for side in self.size):
            raise CHECK.refusal("input.size", self.size, f"multiples of {self.stride}, {NEVER_PADDED}")
        CHECK.length("input.min_size", self.min_size, 2, 2)
        for least, side in zip(self.min_size, self.size, strict=True):
            CHECK.integer("input.min_size", least, 1, side)
        if self.fixed_batch is not None:
            CHECK.integer("input.fixed_batch", self.fixed_batch, 1, MAX_FIXED_BATCH)
            if self.fit == "native":
                raise CHECK.refusal("input.fixed_batch", self.fixed_batch, "null with fit native, whose sizes vary")
        if self.levels is not None:
            CHECK.length("input.levels", self.levels, 2, 2)
            for level in self.levels:
                CHECK.integer("input.levels", level, 0, MAX_LEVEL)
            if self.levels[0] >= self.levels[1]:
                raise CHECK.refusal("input.levels", self.levels, "the value of black first, and a larger one of white")

    @property
    def fixed_shape(self) -> FixedShape | None:
        """(batch, height, width) of the only batches that the file takes; None if it takes any."""
        return None if self.fixed_batch is None else (self.fixed_batch, *self.size)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) of the only images that the file takes; None if it takes any."""
        return None if self.fixed_batch is None else self.size


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """The meaning of the probabilities: one class with a sigmoid, several with a softmax or with a sigmoid each.

    With a softmax a pixel has the most probable class. With sigmoids it has each class whose probability is above
    `threshold`: several classes, one, or none.
    """

    classes: tuple[str, ...] = ("car",)
    activation: Activation = "sigmoid"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        CHECK.length("output.classes", self.classes, 1, MAX_CLASSES)
        for name in self.classes:
            CHECK.text("output.classes", name, 1, MAX_NAME)
        if len(set(self.classes)) != len(self.classes):
            raise CHECK.refusal("output.classes", self.classes, "different names")
        CHECK.choice("output.activation", self.activation, get_args(Activation))
        if (self.activation == "sigmoid") != (len(self.classes) == 1):
            expected = "sigmoid for one class, softmax or sigmoids for several"
            raise CHECK.refusal("output.activation", self.activation, expected)
        CHECK.number("output.threshold", self.threshold, 1e-6, 1 - 1e-6)

    @property
    def thresholded(self) -> bool:
        """True if another threshold changes the answer."""
        return self.activation != "softmax"

    @property
    def overlapping(self) -> bool:
        """True if a pixel may have several classes at once, or none of several."""
        return self.activation == "sigmoids"

    @property
    def first_foreground(self) -> int:
        """Index of the first class of the foreground: the first of several classes is the background."""
        return 0 if self.thresholded else 1

    @property
    def planes(self) -> int:
        """Number of planes of a mask: one, or of classes that overlap one for each."""
        return len(self.classes) if self.overlapping else 1

    def with_threshold(self, threshold: float) -> "OutputSpec":
        """Return the same with another threshold, as a caller gives it for one answer.

        Raises:
            ConfigError: it is not between 0 and 1, or the model takes the most probable one of several classes.
        """
        if not self.thresholded:
            raise ConfigError(
                f"threshold: is for one class, this model has {len(self.classes)} and takes the most probable; "
                "compare result.probability[index] with a number of your own"
            )
        try:
            return replace(self, threshold=float(threshold))
        except (ModelError, TypeError, ValueError) as error:
            raise ConfigError(f"threshold: found {threshold!r}, expected a number between 0 and 1") from error


def default_classes(count: int, activation: Activation) -> tuple[str, ...]:
    """Return the names of so many classes, if nothing tells."""
    if count == 1:
        return ("foreground",)
    exclusive = count == 2 and activation == "softmax"
    return ("background", "foreground") if exclusive else tuple(f"class {index}" for index in range(count))
