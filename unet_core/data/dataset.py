"""Input of the network: augmented training batches in a seeded order, and unchanged validation batches."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from runtime.image import Fitted, place
from unet_core.data.augmentation import Augmentation, augmentation
from unet_core.data.crops import crop
from unet_core.data.labels import Labels
from unet_core.data.records import Records

Key = tuple[int, int]
"""(epoch, index): with the seed, it decides a training picture's crop and augmentation."""


class TrainingSet(Dataset[tuple[Tensor, Tensor]]):
    """Augmented pairs by (epoch, index): image uint8 [height, width, channels], labels uint8 [height, width].

    Crop and augmentation are drawn from (seed, epoch, index) alone. So epochs differ, but two runs see the same
    pictures, whatever the number of workers.
    """

    def __init__(
        self, records: Records, *, seed: int, augment: Augmentation = "basic", foreground_share: float = 1 / 3
    ) -> None:
        self.records, self.seed = records, seed
        self.augment, self.foreground_share = augment, foreground_share
        # Made here and not in the workers, so that forked ones need not import the library again.
        self._transform = None if augment == "off" else augmentation(augment, records.decoder.input.channels == "RGB")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        image, labels = self.records[key[1]]
        random = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
        spec = self.records.decoder.input
        if spec.fit == "native":
            background = self.records.decoder.labels.background
            image, labels = crop(image, labels, spec.size, random, self.foreground_share, background)
        if self._transform is not None:
            self._transform.set_random_seed(int(random.integers(2**32)))
            changed = self._transform(image=image, mask=labels)
            image, labels = changed["image"], changed["mask"]
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(np.ascontiguousarray(labels))


class EpochBatches(Sampler[list[Key]]):
    """The batches of an epoch, in an order drawn from (seed, epoch); for several processes, one process's part.

    Set `epoch`, and `position` (number of images already seen in it) to resume within an epoch.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.processes = rank, processes
        self.epoch, self.position = 1, 0

    def __len__(self) -> int:
        return -(-(self.length - self.position) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = self.epoch, self.order()
        for start in range(self.position, self.length, self.batch_size):
            batch = order[start : start + self.batch_size]
            # The last batch may have fewer images than processes; the others take an image that does not count.
            own = batch[self.rank :: self.processes] if self.rank < len(batch) else batch[:1]
            yield [(epoch, int(index)) for index in own]

    def order(self) -> NDArray[np.int64]:
        """The indices of all images in the order of this epoch."""
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.length)

    def share(self, start: int) -> tuple[int, int]:
        """Numbers of images that count in the batch at position `start`: for this process, and for all processes."""
        whole = min(self.batch_size, self.length - start)
        return len(range(self.rank, whole, self.processes)), whole


class EvaluationSet(Dataset[tuple[Fitted, Labels]]):
    """Pairs without augmentation, by their position in `indices`: the fitted picture, and the truth."""

    def __init__(self, records: Records, indices: Sequence[int]) -> None:
        self.records, self.indices = records, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Fitted, Labels]:
        image, truth = self.records[self.indices[position]]
        original = truth.shape[0], truth.shape[1]
        return place(image, original, self.records.decoder.input), truth


def collate_arrays(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Stack training pictures and labels as arrays, which processes pass through pipes; tensors need /dev/shm."""
    images, labels = zip(*items, strict=True)
    return np.stack([image.numpy() for image in images]), np.stack([label.numpy() for label in labels])


def collate_evaluation(items: Sequence[tuple[Fitted, Labels]]) -> tuple[list[Fitted], list[Labels]]:
    """List the pictures and the truths, which may differ in size; arrays pass through pipes and need no /dev/shm."""
    fitted, truths = zip(*items, strict=True)
    return list(fitted), list(truths)
