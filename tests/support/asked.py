"""Pictures that predictors are asked about, and whether answers are the same."""

import numpy as np


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


IMAGES = [random_image(20 + seed % 3, 30 + seed % 2, seed) for seed in range(24)]


def probabilities(model):
    return [model.predict(image).probability for image in IMAGES]


def same(results, expected):
    return all(np.array_equal(one.probability, other) for one, other in zip(results, expected, strict=True))
