"""Predictions of a network or of an exported model for a set of images, and their metrics."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from runtime.card import ModelCard
from runtime.image import restore
from runtime.predictor import Predictor
from runtime.result import mask_of
from unet_core.data.dataset import EvaluationSet, collate_evaluation
from unet_core.data.labels import IGNORED, Labels
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
        for fitted, truths in batches_of(loader):
            images = torch.from_numpy(np.stack([picture.image for picture in fitted]))
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
        limits = records.decoder.limits
        answer = predictor.predict(pair.source(pair.image, limits), limits=limits)
        if pair.mask is None:
            truth = np.full(answer.shape, IGNORED, np.uint8)
        else:
            truth = pair.truth(records.decoder.labels, limits)
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
