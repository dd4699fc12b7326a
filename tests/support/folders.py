"""Small data sets in Carvana's layout."""

import numpy as np
from PIL import Image


def write_pair(folder, split, name, size=(32, 48), seed=0, mask_suffix="_mask.gif", foreground=255):
    """A noisy picture with a bright rectangle, and the rectangle's mask; returns the mask as 0 and 1."""
    random = np.random.default_rng(seed)
    height, width = size
    top, left = int(random.integers(2, height // 3)), int(random.integers(2, width // 3))
    mask = np.zeros(size, np.uint8)
    mask[top : top + height // 2, left : left + width // 2] = 1
    image = random.integers(0, 80, (height, width, 3)).astype(np.uint8)
    image[mask == 1] += 150
    images, masks = folder / f"{split}_images", folder / f"{split}_masks"
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(images / f"{name}.jpg", quality=95)
    Image.fromarray(mask * np.uint8(foreground)).save(masks / f"{name}{mask_suffix}")
    return mask
