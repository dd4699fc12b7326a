"""Notes of an export, lines that a user should read: which int8 file is written, a size, an image Dice that is low."""

from export.options import ExportOptions, Int8For, fixed_size_text
from runtime.card import ModelCard, Reference


def int8_note(place: Int8For) -> str:
    """Say which int8 file is written where nobody said it."""
    if place == "cpu":
        return (
            "--precision int8: is written for CPUs, since TensorRT does not run here; --for tensorrt writes the other"
        )
    return "--precision int8: is written for TensorRT, which runs here; --for cpu writes the other"


def notes_on_size(options: ExportOptions, trained: ModelCard, card_is_assumed: bool) -> list[str]:
    """Say what a fixed size means for the file; `trained` is the card without it."""
    notes = []
    if options.fixed_size is not None:
        given, (height, width) = f"--fixed-size {fixed_size_text(options.fixed_size)}", trained.input.size
        if trained.input.fit == "native":
            notes.append(f"{given}: images are stretched to that size; the model was trained for images at their own")
        elif (height, width) != options.fixed_size[1:] and not card_is_assumed:
            notes.append(
                f"{given}: images are resized to that size; the model was trained at {width}x{height} (width x height)"
            )
    return notes


def low_dice(image_dice: float, constant: float, reference: Reference) -> str:
    """Say what may be the cause of an image Dice that no trained network has."""
    cause = "do --data, --masks, --size, --mean and --std fit the training?"
    if reference == "reading":
        cause += " If they do, its weights are read in the wrong way: prove the reading by --network or --pairs"
    return (
        f"the image Dice on --data is {image_dice:.4f}, as of a network that finds nothing there (one class everywhere "
        f"has {constant:.4f}); {cause}"
    )
