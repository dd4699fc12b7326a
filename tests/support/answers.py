"""Answers of 2 x 3 pixels: of one class, of three, and of three that overlap."""

import numpy as np

from runtime.card import OutputSpec
from runtime.result import Segmentation, Times

IMAGE = np.random.default_rng(2).integers(0, 256, (2, 3, 3), np.uint8)
ONE = OutputSpec(classes=("car",), threshold=0.5)
THREE = OutputSpec(classes=("road", "car", "tree"), activation="softmax")
EACH = OutputSpec(classes=("hair", "hat", "face"), activation="sigmoids", threshold=0.5)
TIMES = Times(decode=4.0, fit=1.0, transfer=0.5, infer=20.25, restore=2.0)


def one_class():
    """Around its threshold; its mask is [[0, 0, 0], [1, 1, 1]]."""
    probability = np.array([[[0, 0.49, 0.5], [0.51, 1, np.nextafter(np.float32(0.5), np.float32(1))]]], np.float32)
    return Segmentation(probability=probability, image=IMAGE, output=ONE)


def three_classes():
    """0.8 of the class and 0.1 of the others; its mask is [[0, 2, 1], [2, 2, 0]]."""
    probability = np.full((3, 2, 3), 0.1, np.float32)
    for (row, column), index in np.ndenumerate([[0, 2, 1], [2, 2, 0]]):
        probability[index, row, column] = 0.8
    return Segmentation(probability=probability, image=IMAGE, output=THREE)


def overlapping_classes():
    """The first row is hair, two thirds of it a hat too; one pixel of the second row is a hat alone; no face."""
    hair, hat, face = [[0.6, 0.9, 0.7], [0.1, 0.5, 0.2]], [[0.3, 0.8, 0.95], [0.1, 0.2, 0.75]], [[0.4] * 3] * 2
    return Segmentation(probability=np.array([hair, hat, face], np.float32), image=IMAGE, output=EACH)


def answer_of(mask, output=THREE):
    """0.8 of the class of each pixel of `mask`, [height, width], and 0.1 of the others; with one class of 1."""
    mask = np.asarray(mask)
    values = np.arange(len(output.classes))[:, None, None] + (len(output.classes) == 1)
    probability = np.where(mask == values, np.float32(0.8), np.float32(0.1))
    return Segmentation(probability=probability, image=np.zeros((*mask.shape, 3), np.uint8), output=output)


def random_answers(count, seed=5, output=THREE):
    """Answers of several sizes: noise, whose parts have holes and touch at corners, and patches of 4 x 3 pixels."""
    random = np.random.default_rng(seed)
    for index in range(count):
        classes = random.integers(0, max(2, len(output.classes)), tuple(random.integers(1, 16, 2)))
        yield answer_of(np.kron(classes, np.ones((4, 3), int)) if index % 2 else classes, output)
