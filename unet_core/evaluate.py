"""Metrics of a checkpoint or an ONNX file, at the images' original size: `python -m unet_core.evaluate`."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from tqdm import tqdm

from runtime.card import ModelCard
from runtime.console import Command, progress_hidden
from runtime.errors import CheckpointError, DeviceError, ImageError
from runtime.image import restore
from runtime.predictor import Predictor
from runtime.providers import available_threads
from runtime.result import mask_of
from unet_core.checkpoint import load_checkpoint
from unet_core.data import (
    EvaluationSet,
    Pair,
    batches_of,
    check_pairs,
    collate_evaluation,
    find_pairs,
    load_truth,
    quiet_worker,
)
from unet_core.metrics import BinaryMetrics
from unet_core.model import Segmenter

Prediction = tuple[Pair, NDArray[np.float32], NDArray[np.uint8]]
"""A pair, its probability [classes, height, width] and its truth [height, width], both at the original size."""

MAX_WORKERS = 8


def default_workers() -> int:
    """Processes that load images beside the one that computes."""
    return min(available_threads(), MAX_WORKERS)


def torch_device(name: str) -> torch.device:
    """The PyTorch device for "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        DeviceError: an explicit device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise DeviceError(f"device {name!r}: is none of PyTorch's here; expected auto, cpu, cuda or cuda:N")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DeviceError(
            f"device {name!r}: PyTorch cannot use it ({reason}); expected auto, cpu, cuda or cuda:N"
        ) from error
    return device


def checkpoint_predictions(
    segmenter: Segmenter, card: ModelCard, pairs: Sequence[Pair], *, batch_size: int = 1, workers: int = 0
) -> Iterator[Prediction]:
    """Answers of a PyTorch network, resized to each image's own size; runs where its weights are."""
    # Images that keep their own size cannot be stacked.
    batch_size = 1 if card.input.fit == "native" else batch_size
    loader = DataLoader(
        EvaluationSet(pairs, card.input),
        batch_size,
        num_workers=workers,
        collate_fn=collate_evaluation,
        worker_init_fn=quiet_worker,
    )
    waiting = iter(pairs)
    device = next(segmenter.parameters()).device
    training = segmenter.training
    segmenter.eval()
    try:
        for images, fitted, truths in batches_of(loader):
            with torch.inference_mode():
                probabilities = segmenter(images.to(device)).cpu().numpy()
            for probability, fit, truth in zip(probabilities, fitted, truths, strict=True):
                yield next(waiting), restore(probability, fit), truth
    finally:
        segmenter.train(training)


def onnx_predictions(predictor: Predictor, pairs: Sequence[Pair]) -> Iterator[Prediction]:
    """Answers of an exported model through the runtime, as an application gets them."""
    for pair in pairs:
        yield pair, predictor.predict(pair.image).probability, load_truth(pair.mask)


def measure(
    predictions: Iterator[Prediction],
    card: ModelCard,
    on_image: Callable[[Pair, NDArray[np.uint8], NDArray[np.uint8]], None] | None = None,
) -> BinaryMetrics:
    """Count every prediction against its truth; `on_image` sees the pair, the predicted mask and the truth.

    Raises:
        ImageError: a mask has another size than its image.
    """
    metrics = BinaryMetrics()
    for pair, probability, truth in predictions:
        predicted = mask_of(probability, card.output)
        if predicted.shape != truth.shape:
            raise ImageError(f"{pair.mask}: is {truth.shape}, expected {predicted.shape} (h, w) as {pair.image.name}")
        metrics.add(predicted, truth)
        if on_image is not None:
            on_image(pair, predicted, truth)
    return metrics


def evaluate(
    model: str | os.PathLike[str], pairs: Sequence[Pair], *, device: str = "auto", batch_size: int = 4, workers: int = 0
) -> BinaryMetrics:
    """Measure a checkpoint (with PyTorch) or an .onnx file (with the runtime) on pairs, at the original size.

    Raises:
        CheckpointError, ModelError, DeviceError: see `load_checkpoint` and `Predictor`.
        DataError: an image or mask cannot be used; all such pairs are listed.
    """
    if Path(model).suffix.lower() == ".onnx":
        predictor = Predictor(model, device)
        card, predictions = predictor.card, onnx_predictions(predictor, pairs)
    else:
        checkpoint = load_checkpoint(model)
        card = checkpoint.card
        segmenter = Segmenter(checkpoint.network(), card).to(torch_device(device))
        predictions = checkpoint_predictions(segmenter, card, pairs, batch_size=batch_size, workers=workers)
    if card.architecture.classes != 1:
        raise CheckpointError(f"{model}: has {card.architecture.classes} classes; only one is measured so far")
    check_pairs(pairs)
    bar = tqdm(predictions, "evaluating", len(pairs), disable=progress_hidden(), leave=False)
    return measure(iter(bar), card)


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["train", "val"]), default="val", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:N; for .onnx also tensorrt:N.")
@click.option("--batch-size", type=click.IntRange(min=1), default=4, show_default=True, help="Of a checkpoint.")
@click.option("--workers", type=click.IntRange(min=0), default=default_workers, show_default="CPU cores, at most 8")
def main(model: Path, data: Path, split: str, device: str, batch_size: int, workers: int) -> None:
    """Measure MODEL (a checkpoint or an .onnx file) on the images and masks in DATA, at their original size."""
    pairs = find_pairs(data, "train" if split == "train" else "val")
    metrics = evaluate(model, pairs, device=device, batch_size=batch_size, workers=workers)
    click.echo(f"{model} on {len(pairs)} {split} images of {data}")
    for name, value in metrics.summary().items():
        click.echo(f"  {name:<12}{value:.4f}")


if __name__ == "__main__":
    main()
