"""What a run shows: panels of image, truth and prediction, and the curves of its metrics."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor
from torchvision.utils import draw_segmentation_masks, make_grid, save_image

from runtime.files import replacing
from runtime.image import load_image, resize
from runtime.result import COLOURS
from unet_core.data import Pair

PANEL_SIDE = 480
"""Pixels of the longer side of each picture in a panel."""

History = Sequence[Mapping[str, float]]


def save_panel(
    path: str | os.PathLike[str], pair: Pair, predicted: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> None:
    """Draw image | truth | prediction side by side; masks are 0 or 1 [height, width] of the image's size."""
    image = load_image(pair.image)
    scale = min(1.0, PANEL_SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
    plain = torch.from_numpy(resize(image, size)).permute(2, 0, 1)  # [3, h, w]
    grid = make_grid([plain, _tinted(plain, truth), _tinted(plain, predicted)], nrow=3, padding=4, pad_value=255)
    with replacing(path) as temporary:
        save_image(grid.float() / 255, temporary)


def _tinted(image: Tensor, mask: NDArray[np.uint8]) -> Tensor:
    small = resize(mask[:, :, None].astype(np.float32), (image.shape[1], image.shape[2]))[:, :, 0] >= 0.5
    tinted: Tensor = draw_segmentation_masks(image, torch.from_numpy(small), alpha=0.55, colors=[COLOURS[0]])
    return tinted


def save_curves(path: str | os.PathLike[str], history: History) -> None:
    """Plot the training loss and the validation metrics of every epoch."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["train_loss"] for row in history], marker="o", color="tab:red")
    left.set(title="training loss", xlabel="epoch")
    for name, label, style in (
        ("pixel_dice", "pixel Dice", "o-"),
        ("image_dice", "image Dice", "x--"),
        ("iou", "IoU", "s-"),
    ):
        right.plot(epochs, [row[name] for row in history], style, label=label)  # the two Dices often coincide
    right.set(title="validation, original size", xlabel="epoch", ylim=(0, 1.02))
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
