"""The proof of a file's answers, with its training, its gate, and the permission to compute it in bf16."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

from runtime.card_fields.checks import CHECK, MAX_ENTRIES, MAX_NAME, MAX_SIDE, MAX_TEXT, check_texts

Images = Literal["synthetic", "data"]
Compared = Images | Literal["pairs"]
"""Origin of compared images; "pairs" are inputs that an author's program answered itself."""
Reference = Literal["module", "reading", "pairs"]
"""The thing that a file was compared with: a network that somebody gave as code, which is this library's own where it
was trained here; this library's reading of a file that holds weights alone; or such a reading that gives the outputs of
its author's program for the same inputs."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Origin of the weights: epochs trained, fingerprint of the data, validation metrics (0..1) by name."""

    epochs: int
    data: str
    metrics: Mapping[str, float]

    def __post_init__(self) -> None:
        CHECK.integer("training.epochs", self.epochs, 0, 10**9)
        CHECK.text("training.data", self.data, 0, MAX_TEXT)
        CHECK.mapping("training.metrics", self.metrics, MAX_ENTRIES, MAX_NAME)
        for name, value in self.metrics.items():
            CHECK.number(f"training.metrics.{name}", value, -1e9, 1e9)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Distance of answer A from answer B on the same image.

    Attributes:
        max_abs_error: max |pA - pB|.
        flipped: share (0..1) of the pixels whose class differs; of classes that overlap, any of them.
        iou: IoU of the two masks, the mean over the classes that occur.
        flip_distance: largest distance of B from its decision among the flipped pixels. Near 0 a flip is arithmetic,
            far from 0 it is a bug.
    """

    max_abs_error: float
    flipped: float
    iou: float
    flip_distance: float

    def __post_init__(self) -> None:
        for item in fields(self):
            CHECK.number(f"proof.{item.name}", getattr(self, item.name), 0, 1)


@dataclass(frozen=True, kw_only=True)
class ProofRow:
    """Parity on one input; `shape` is (batch, height, width), `images` the kind of images.

    On "pairs" PyTorch was compared with its author's outputs, on all others the file with PyTorch.
    """

    shape: tuple[int, int, int]
    images: Compared
    parity: Parity

    def __post_init__(self) -> None:
        CHECK.length("proof.rows.shape", self.shape, 3, 3)
        for side in self.shape:
            CHECK.integer("proof.rows.shape", side, 1, MAX_SIDE)
        CHECK.choice("proof.rows.images", self.images, (*get_args(Images), "pairs"))


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The loss of a file of lower precision against fp32 on real images, and the verdict on it.

    Attributes:
        images: kind of images.
        count: number of images.
        flipped: share (0..1) of their pixels whose class differs from fp32.
        image_dice: image Dice of this file against masks; None without masks.
        image_dice_fp32: image Dice of the fp32 file; None without masks.
        kept: names of the layers that stayed in fp32.
        passed: False if the loss was too large and the file was written because the user insisted.
        layers: number of layers of the network; None in files from before it was noted, which are U-Nets.
    """

    images: Images
    count: int
    flipped: float
    image_dice: float | None
    image_dice_fp32: float | None
    kept: tuple[str, ...]
    passed: bool
    layers: int | None = None

    def __post_init__(self) -> None:
        CHECK.choice("proof.gate.images", self.images, get_args(Images))
        CHECK.integer("proof.gate.count", self.count, 1, 10**9)
        CHECK.number("proof.gate.flipped", self.flipped, 0, 1)
        if (self.image_dice is None) != (self.image_dice_fp32 is None):
            raise CHECK.refusal(
                "proof.gate.image_dice_fp32", self.image_dice_fp32, "a number with image_dice, else none"
            )
        for name in ("image_dice", "image_dice_fp32"):
            if getattr(self, name) is not None:
                CHECK.number(f"proof.gate.{name}", getattr(self, name), 0, 1)
        CHECK.length("proof.gate.kept", self.kept, 0, 1_000)
        for layer in self.kept:
            CHECK.text("proof.gate.kept", layer, 1, MAX_NAME)
        CHECK.choice("proof.gate.passed", self.passed, (True, False))
        if self.layers is not None:
            CHECK.integer("proof.gate.layers", self.layers, max(1, len(self.kept)), 10**6)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Parity of the exported graph with PyTorch, and the provider and versions that measured it.

    `reference` is what the file was compared with. `tolerance` is the largest error that passes; a file below fp32 has
    a `gate` instead. `golden_error` is the file's
    error on the golden sample at export: against PyTorch, or below fp32 between two ways to compute the file.
    """

    provider: str
    versions: Mapping[str, str]
    tolerance: float | None
    rows: tuple[ProofRow, ...]
    golden_error: float
    gate: Gate | None = None
    reference: Reference = "module"

    def __post_init__(self) -> None:
        CHECK.choice("proof.reference", self.reference, get_args(Reference))
        CHECK.text("proof.provider", self.provider, 1, MAX_NAME)
        check_texts("proof.versions", self.versions)
        if self.tolerance is not None:
            CHECK.number("proof.tolerance", self.tolerance, 0, 1)
        CHECK.length("proof.rows", self.rows, 1, 1_000)
        CHECK.number("proof.golden_error", self.golden_error, 0, 1)

    @property
    def max_abs_error(self) -> float:
        """The largest error of all rows, which is the smallest tolerance that would have passed."""
        return max(row.parity.max_abs_error for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Bf16Permission:
    """The verdict that devices may compute a file in bf16 where they are faster so, and the loss that it stands on.

    Attributes:
        gate: the loss against fp32 on real images; without `passed` nothing is permitted.
        max_flipped: largest share (0..1) of flipped pixels that passed; None: an int8 file's own limits were kept.
        golden_error: largest error on the golden sample in bf16, at export.
        max_abs_error: largest error in bf16 on the pictures of the proof, against the file's answers without bf16.
        provider: the program that computed in bf16, with its version.
    """

    gate: Gate
    max_flipped: float | None
    golden_error: float
    max_abs_error: float
    provider: str

    def __post_init__(self) -> None:
        for name in ("golden_error", "max_abs_error"):
            CHECK.number(f"bf16.{name}", getattr(self, name), 0, 1)
        if self.max_flipped is not None:
            CHECK.number("bf16.max_flipped", self.max_flipped, 0, 1)
        CHECK.text("bf16.provider", self.provider, 1, MAX_NAME)
