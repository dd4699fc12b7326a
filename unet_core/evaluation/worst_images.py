"""The images that were segmented worst, which a run saves pictures of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.image import load_image
from unet_core.data.labels import Labels
from unet_core.data.records import Records


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
            pair, limits, spec = records.pairs[item.index], records.decoder.limits, records.decoder.input
            channels = "raw" if spec.channels == "raw" else "RGB"
            return load_image(pair.source(pair.image, limits), channels, limits=limits, levels=spec.levels)
        return records[item.index][0]
