"""Checkpoints and ONNX files behind one interface, by which evaluation uses them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from runtime.card import ModelCard
from runtime.errors import ConfigError, DeviceError, ImageError, UnetError
from runtime.image import Decode
from runtime.predictor import Predictor
from unet_core.data.records import Records
from unet_core.evaluation.predictions import Prediction, checkpoint_predictions, onnx_predictions
from unet_core.evaluation.torch_device import torch_device
from unet_core.model import Segmenter
from unet_core.model_options import CardChanges, NetworkOptions
from unet_core.networks.checkpoint import open_checkpoint


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model that is loaded and ready to predict.

    `predictions` takes records, the batch size and the number of workers. `notes` are for the user to read.
    """

    path: Path
    card: ModelCard
    predictions: Callable[[Records, int, int], Iterator[Prediction]]
    notes: tuple[str, ...] = ()

    def predict(self, records: Records, batch_size: int, workers: int) -> Iterator[Prediction]:
        """Predict every image of the records.

        Raises:
            ImageError: at the first pair that cannot be used.
            DeviceError: the device is out of memory.
            UnetError: the operating system fails while an image is read or the model runs.
        """
        for pair in records.pairs:
            if pair.fault:
                raise ImageError(f"{pair.image}: {pair.fault}")
        try:
            for index, probability, truth in self.predictions(records, batch_size, workers):
                if probability.shape[1:] != truth.shape:
                    pair = records.pairs[index]
                    raise ImageError(f"{pair.place(pair.mask or pair.image)}: differs in size from its image")
                yield index, probability, truth
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"--batch-size {batch_size}: the device is out of memory; give a smaller one, or --device cpu"
            ) from error
        except OSError as error:  # unchanged, it would pass for an error of writing the submission
            raise UnetError(f"{self.path}: measuring failed ({error})") from error


def load_model(
    model: str | os.PathLike[str],
    device: str | int,
    network: NetworkOptions | None = None,
    changes: CardChanges | None = None,
    decode: Decode = "full",
) -> EvaluatedModel:
    """Load an .onnx file, which is known by its suffix, or a checkpoint; arguments and errors as of `evaluate`."""
    path, network, changes = Path(model), network or NetworkOptions(), changes or CardChanges()
    if path.suffix.lower() == ".onnx":
        if network != NetworkOptions() or changes.given:
            raise ConfigError(
                f"{path}: is an ONNX file, which has its network and its card; leave out --network, --weights and the "
                "options for a card"
            )
        predictor = Predictor(path, device, decode=decode)
        return EvaluatedModel(
            path=path, card=predictor.card, predictions=lambda records, *_: onnx_predictions(predictor, records)
        )
    if decode != "full":
        raise ConfigError(
            f"{path}: is a checkpoint, whose images are always decoded in full; export it, and measure the .onnx file"
        )
    checkpoint = open_checkpoint(path, network, changes)
    card = checkpoint.card_with(changes, path)
    notes = checkpoint.notes_on(card.input)
    segmenter = Segmenter(checkpoint.network(), card).to(torch_device(device))
    assumed = changes.assumptions(card, activation=checkpoint.activation_is_assumed)
    if checkpoint.card_is_assumed and assumed:
        notes = (f"has no card; assumed: {assumed}", *notes)

    def predictions(records: Records, batch_size: int, workers: int) -> Iterator[Prediction]:
        return checkpoint_predictions(segmenter, card, records, batch_size=batch_size, workers=workers)

    return EvaluatedModel(path=path, card=card, predictions=predictions, notes=notes)
