"""Data sets of images of many channels, of which one tells foreground from background."""

import numpy as np
import tifffile
from PIL import Image


def write_channels(folder, split, name, count=5, suffix=".tif", dtype=np.uint8, size=(32, 48), seed=0):
    """Noise in all channels but the last, which is bright where the mask is; returns image and mask (0 and 1)."""
    random = np.random.default_rng(seed)
    height, width = size
    top, left = int(random.integers(2, height // 3)), int(random.integers(2, width // 3))
    mask = np.zeros(size, np.uint8)
    mask[top : top + height // 2, left : left + width // 2] = 1
    noise = random.random((*size, count)) * 0.8
    noise[:, :, -1] = noise[:, :, -1] / 8 + 0.8 * mask
    is_float = np.dtype(dtype).kind == "f"
    image = noise.astype(dtype) if is_float else (noise * np.iinfo(dtype).max).astype(dtype)
    images, masks = folder / f"{split}_images", folder / f"{split}_masks"
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    write_image(images / f"{name}{suffix}", image)
    Image.fromarray(mask * np.uint8(255)).save(masks / f"{name}.png")
    return image, mask


def write_image(path, image):
    """Write an array [height, width, channels] in the format of the suffix."""
    if path.suffix == ".npy":
        np.save(path, image)
    elif path.suffix == ".npz":
        np.savez_compressed(path, image=image)
    elif path.suffix == ".png":
        Image.fromarray(image).save(path)
    else:
        planes = None if image.shape[2] == 1 else "contig"
        tifffile.imwrite(path, image, photometric="minisblack", planarconfig=planes, compression="zlib")
