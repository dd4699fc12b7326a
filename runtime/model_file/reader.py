"""Card and golden sample of a model's file, read and checked before ONNX Runtime sees the file."""

from dataclasses import replace
from pathlib import Path

from runtime.card import ModelCard
from runtime.errors import ModelError
from runtime.model_file.golden import Golden
from runtime.model_file.graph_validator import check_model
from runtime.model_file.metadata import read_card_and_golden


def path_of(model: object) -> Path:
    """Return the path of a model's file.

    Raises:
        ModelError: the argument is not a path.
    """
    try:
        return Path(model)  # type: ignore[arg-type]
    except TypeError as error:
        raise ModelError(f"model: found {type(model).__name__}, expected the path of an .onnx file") from error


def identity_of(path: Path) -> tuple[int, ...]:
    """Values that change when a file is replaced or written to; () if there is no file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def read_model(path: Path) -> tuple[ModelCard, Golden]:
    """Return the card and the golden sample of an ONNX file that `unet-export` wrote.

    Raises:
        ModelError: the file is missing, damaged, of another program, or not safe to load; see `check_model`.
    """
    card_json, golden_json = read_card_and_golden(path)
    try:
        card, golden = ModelCard.from_json(card_json), Golden.from_json(golden_json)
        card = replace(card, bf16=golden.bf16)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    found = golden.image.shape[2], golden.probability.shape[0]
    expected = card.architecture.in_channels, card.architecture.classes
    if found != expected:
        raise ModelError(
            f"{path}: golden sample: has {found[0]} channels and {found[1]} classes, "
            f"the card says {expected[0]} and {expected[1]}; export the model again"
        )
    fixed = card.input.fixed_shape
    if fixed is not None and (golden.image.shape[0] > fixed[1] or golden.image.shape[1] > fixed[2]):
        raise ModelError(
            f"{path}: golden sample: is larger than the {fixed[2]}x{fixed[1]} pixels of its card; export the model "
            "again"
        )
    check_model(path)
    return card, golden
