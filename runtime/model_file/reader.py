"""A model's file: its card and golden sample, read and checked before ONNX Runtime sees it."""

from pathlib import Path

from runtime.card import CARD_KEY, RAW_KEY, ModelCard
from runtime.errors import ModelError
from runtime.model_file.golden import GOLDEN_KEY, Golden
from runtime.model_file.metadata import read_metadata
from runtime.model_file.validator import check_model


def path_of(model: object) -> Path:
    """The path of a model's file.

    Raises:
        ModelError: it is no path.
    """
    try:
        return Path(model)  # type: ignore[arg-type]
    except TypeError as error:
        raise ModelError(f"model: found {type(model).__name__}, expected the path of an .onnx file") from error


def identity_of(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written to; () where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def read_model(path: Path) -> tuple[ModelCard, Golden]:
    """The card and the golden sample of an ONNX file that `unet-export` wrote.

    Raises:
        ModelError: it is absent, damaged, foreign, or not safe to load; see `check_model`.
    """
    metadata = read_metadata(path)
    card = _card_of(path, metadata)
    golden = _golden_of(path, metadata, card)
    check_model(path)
    return card, golden


def _card_of(path: Path, metadata: dict[str, str]) -> ModelCard:
    if RAW_KEY in metadata:
        raise ModelError(f"{path}: is a raw export (normalised planes in, logits out); export it again without --raw")
    if CARD_KEY not in metadata:
        raise ModelError(
            f"{path}: is an ONNX file without a card (metadata key {CARD_KEY}), so its input and output are unknown; "
            "make it from its checkpoint with: unet-export model.pth"
        )
    try:
        return ModelCard.from_json(metadata[CARD_KEY])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _golden_of(path: Path, metadata: dict[str, str], card: ModelCard) -> Golden:
    if GOLDEN_KEY not in metadata:
        raise ModelError(f"{path}: has no golden sample (metadata key {GOLDEN_KEY}); export the model again")
    try:
        golden = Golden.from_json(metadata[GOLDEN_KEY])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    found = golden.image.shape[2], golden.probability.shape[0]
    expected = card.architecture.in_channels, card.architecture.classes
    if found != expected:
        raise ModelError(
            f"{path}: golden sample: has {found[0]} channels and {found[1]} classes, "
            f"the card says {expected[0]} and {expected[1]}; export the model again"
        )
    return golden
