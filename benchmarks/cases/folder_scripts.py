"""Scripts of the folder part, as one writes them in PyTorch: one image file after the other to its mask."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from benchmarks.contestants.pytorch_calls import attribute_set
from runtime.card import ModelCard
from runtime.image import fit, load_image, restore
from runtime.image_files.limits import Limits
from runtime.result import Segmentation
from unet_core.model import Segmenter


def pytorch_script(
    network: Segmenter, card: ModelCard, paths: Sequence[Path], target_of: Callable[[Path], Path]
) -> Callable[[], None]:
    """Make a script as one writes it without a library: one image after the other, resized as trained and back."""
    height, width = card.input.size

    def run() -> None:
        with attribute_set(Image, "MAX_IMAGE_PIXELS", None):
            predict()

    def predict() -> None:
        for path in paths:
            picture = Image.open(path).convert(card.input.channels)
            pixels = np.array(picture.resize((width, height), Image.Resampling.BILINEAR)).reshape(1, height, width, -1)
            with torch.inference_mode():
                small = network(torch.from_numpy(pixels))
                probability = functional.interpolate(small, picture.size[::-1], mode="bilinear")[0]
            mask = (probability[0] > 0.5) * 255 if len(probability) == 1 else probability.argmax(0)
            Image.fromarray(mask.numpy().astype(np.uint8)).save(target_of(path))

    return run


def script_with_our_images(
    network: Segmenter, card: ModelCard, paths: Sequence[Path], target_of: Callable[[Path], Path], limits: Limits
) -> Callable[[], None]:
    """Make a script with all of the runtime's work on images, so that only the network is computed otherwise."""

    def run() -> None:
        for path in paths:
            image = load_image(path, card.input.channels, limits=limits, levels=card.input.levels)
            fitted = fit(image, card.input)
            with torch.inference_mode():
                probability = network(torch.from_numpy(fitted.image[None])).numpy()[0]
            result = Segmentation(probability=restore(probability, fitted), image=image, output=card.output)
            result.save(target_of(path))

    return run
