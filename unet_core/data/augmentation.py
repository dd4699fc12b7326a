"""Augmentation of training pictures, by albumentations."""

import os
from typing import Any, Literal

Augmentation = Literal["off", "basic", "strong"]

MAX_ROTATION = 35
"""Largest rotation of "basic" augmentation, in degrees to either side."""


def augmentation(kind: Augmentation, coloured: bool = True) -> Any:
    """Make the albumentations pipeline of a kind; borders are mirrored, since no real picture has black corners.

    "basic": rotation by up to 35 degrees, horizontal flips, and now and then vertical ones. "strong": horizontal flips,
    scale from 0.7 to 1.5 with a little rotation and shear, brightness and contrast, colour, sometimes blur.
    """
    os.environ.setdefault(
        "NO_ALBUMENTATIONS_UPDATE", "1"
    )  # otherwise importing it asks the network for a newer version
    import albumentations
    import cv2

    border = cv2.BORDER_REFLECT_101
    if kind == "basic":
        return albumentations.Compose(
            [
                albumentations.Rotate(limit=MAX_ROTATION, p=1.0, border_mode=border),
                albumentations.HorizontalFlip(p=0.5),
                albumentations.VerticalFlip(p=0.1),
            ]
        )
    colour = [albumentations.HueSaturationValue(hue_shift_limit=12, sat_shift_limit=30, val_shift_limit=0, p=0.5)]
    return albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Affine(
                scale=(0.7, 1.5),
                translate_percent=(-0.15, 0.15),
                rotate=(-10, 10),
                shear=(-6, 6),
                balanced_scale=True,
                border_mode=border,
                p=0.9,
            ),
            albumentations.RandomBrightnessContrast(brightness_limit=0.25, contrast_limit=0.25, p=0.7),
            *(colour if coloured else []),
            albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.2, 1.2), p=0.15),
        ]
    )
