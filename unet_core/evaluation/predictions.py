"""Answers of a network or of an exported model for a set of images, and how good they are."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from runtime.card import ModelCard
from runtime.errors import DeviceError
from runtime.image import load_image, restore
from runtime.predictor import Predictor
from runtime.result import mask_of
from runtime.support.cpu_count import available_threads
from unet_core.data.dataset import EvaluationSet, batches_of, collate_evaluation, quiet_worker
from unet_core.data.labels import IGNORED, Labels, LabelSpec, load_truth
from unet_core.data.pairs import Pair
from unet_core.data.records import Records
from unet_core.evaluation.metrics import Metrics
from unet_core.model import Segmenter

Prediction = tuple[int, NDArray[np.float32], Labels]
"""Index of an image, its probability [classes, height, width], and its truth [height, width] of the same size."""

OnImage = Callable[[int, Labels, Labels, float], None]
"""Told of an image's index, the predicted labels, the truth, and its Dice."""

MAX_WORKERS = 8


def default_workers() -> int:
    """Processes that load images beside the one that computes."""
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of torchrun on this machine share its cores
    return min(max(1, available_threads() // together), MAX_WORKERS)


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
    segmenter: Segmenter,
    card: ModelCard,
    records: Records,
    indices: Sequence[int] | None = None,
    *,
    batch_size: int = 1,
    workers: int = 0,
) -> Iterator[Prediction]:
    """Answers of a PyTorch network, resized to the size of each truth; runs where its weights are, in fp32."""
    indices = range(len(records)) if indices is None else indices
    # Images that keep their own size cannot be stacked.
    batch_size = 1 if card.input.fit == "native" else batch_size
    loader = DataLoader(
        EvaluationSet(records, indices),
        batch_size,
        num_workers=min(workers, -(-len(indices) // batch_size)),
        collate_fn=collate_evaluation,
        worker_init_fn=quiet_worker,
        generator=torch.Generator(),  # the loader draws a seed, which nothing here uses, from the global one otherwise
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
    """Answers of an exported model through the runtime, as an application gets them; truths at the original size."""
    for index, pair in enumerate(records.pairs):
        answer = predictor.predict(pair.image)
        yield index, answer.probability, _truth_of(pair, answer.size, records.decoder.labels)


def _truth_of(pair: Pair, size: tuple[int, int], spec: LabelSpec) -> Labels:
    """What a record's labels are, without its picture."""
    return np.full(size, IGNORED, np.uint8) if pair.mask is None else load_truth(pair.mask, spec)


def measure(predictions: Iterator[Prediction], card: ModelCard, on_image: OnImage | None = None) -> Metrics:
    """Count every prediction against its truth."""
    metrics = Metrics(card.output.classes)
    for index, probability, truth in predictions:
        predicted = mask_of(probability, card.output)
        dice = metrics.add(predicted, truth, index)
        if on_image is not None:
            on_image(index, predicted, truth, dice)
    return metrics


@dataclass(frozen=True, kw_only=True)
class Poor:
    """An image that was segmented poorly: its index and Dice, and the labels."""

    index: int
    dice: float
    predicted: Labels
    truth: Labels


class Worst:
    """The images with the lowest Dice, worst first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.items: list[Poor] = []

    def add(self, index: int, predicted: Labels, truth: Labels, dice: float) -> None:
        """Take in an image, if it is among the worst so far."""
        if len(self.items) < self.limit or (dice, index) < (self.items[-1].dice, self.items[-1].index):
            self._keep([Poor(index=index, dice=dice, predicted=predicted, truth=truth)])

    def merge(self, other: "Worst") -> None:
        """Take in another process's."""
        self._keep(other.items)

    def _keep(self, new: Sequence[Poor]) -> None:
        ordered = sorted([*self.items, *new], key=lambda item: (item.dice, item.index))
        self.items = ordered[: self.limit]

    def picture(self, records: Records, item: Poor) -> NDArray[np.uint8]:
        """The image of an item, of the size of its labels."""
        if records.decoder.truth_at_original:
            return load_image(records.pairs[item.index].image)
        return records[item.index][0]
