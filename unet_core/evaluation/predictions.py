"""Predictions of a network or of an exported model for a set of images, and their metrics."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from runtime.card import ModelCard
from runtime.image import load_image, restore
from runtime.predictor import Predictor
from runtime.result import mask_of
from unet_core.data.dataset import EvaluationSet, collate_evaluation
from unet_core.data.labels import IGNORED, Labels, load_truth
from unet_core.data.records import Records
from unet_core.data.workers import batches_of, quiet_worker
from unet_core.evaluation.metrics import Metrics
from unet_core.model import Segmenter

Prediction = tuple[int, NDArray[np.float32], Labels]
"""Index of an image, its probabilities float32 [classes, height, width], and its truth [height, width]."""

OnImage = Callable[[int, Labels, Labels, float], None]
"""Called with an image's index, the predicted labels, the truth, and its Dice."""


def checkpoint_predictions(
    segmenter: Segmenter,
    card: ModelCard,
    records: Records,
    indices: Sequence[int] | None = None,
    *,
    batch_size: int = 1,
    workers: int = 0,
) -> Iterator[Prediction]:
    """Predict images with a PyTorch network, in fp32 on its own device; probabilities have the size of the truth."""
    indices = range(len(records)) if indices is None else indices
    # Images that keep their own size cannot be stacked.
    batch_size = 1 if card.input.fit == "native" else batch_size
    loader = DataLoader(
        EvaluationSet(records, indices),
        batch_size,
        num_workers=min(workers, -(-len(indices) // batch_size)),
        collate_fn=collate_evaluation,
        worker_init_fn=quiet_worker,
        generator=torch.Generator(),  # without it the loader draws a seed, which nothing uses, from the global one
    )
    waiting = iter(indices)
    device = next(segmenter.parameters()).device
    modes = [(module, module.training) for module in segmenter.modules()]
    segmenter.eval()
    try:
        for images, fitted, truths in batches_of(loader):
            with torch.inference_mode():
                probabilities = segmenter(images.to(device)).cpu().numpy()
            for probability, fit, truth in zip(probabilities, fitted, truths, strict=True):
                yield next(waiting), restore(probability, fit), truth
    finally:
        for module, training in modes:
            module.training = training


def onnx_predictions(predictor: Predictor, records: Records) -> Iterator[Prediction]:
    """Predict images with an exported model, as an application does; truths have the original size."""
    for index, pair in enumerate(records.pairs):
        answer = predictor.predict(pair.image)
        if pair.mask is None:
            truth = np.full(answer.size, IGNORED, np.uint8)
        else:
            truth = load_truth(pair.mask, records.decoder.labels)
        yield index, answer.probability, truth


def compute_metrics(predictions: Iterator[Prediction], card: ModelCard, on_image: OnImage | None = None) -> Metrics:
    """Compare every prediction with its truth; `on_image` is called after each."""
    metrics = Metrics(card.output.classes)
    for index, probability, truth in predictions:
        predicted = mask_of(probability, card.output)
        dice = metrics.add(predicted, truth, index)
        if on_image is not None:
            on_image(index, predicted, truth, dice)
    return metrics


@dataclass(frozen=True, kw_only=True)
class PoorImage:
    """An image that was segmented poorly: its index and Dice, and its labels, predicted and true."""

    index: int
    dice: float
    predicted: Labels
    truth: Labels


class Worst:
    """The `limit` images with the lowest Dice, worst first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.items: list[PoorImage] = []

    def add(self, index: int, predicted: Labels, truth: Labels, dice: float) -> None:
        """Keep an image if it is among the worst so far."""
        if len(self.items) < self.limit or (dice, index) < (self.items[-1].dice, self.items[-1].index):
            self._keep([PoorImage(index=index, dice=dice, predicted=predicted, truth=truth)])

    def merge(self, other: "Worst") -> None:
        """Keep the worst of these and another process's images."""
        self._keep(other.items)

    def _keep(self, new: Sequence[PoorImage]) -> None:
        ordered = sorted([*self.items, *new], key=lambda item: (item.dice, item.index))
        self.items = ordered[: self.limit]

    def picture(self, records: Records, item: PoorImage) -> NDArray[np.uint8]:
        """The picture of an item, uint8 [height, width, channels], in the size of its labels."""
        if records.decoder.truth_at_original:
            return load_image(records.pairs[item.index].image)
        return records[item.index][0]
