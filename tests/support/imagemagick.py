"""ImageMagick's reading of image files, where it is installed; all files in one call."""

import shutil
import subprocess

import numpy as np
from image_corpus import HEIGHT, WIDTH

PIXELS = ("-colorspace", "sRGB", "-type", "TrueColor", "-alpha", "off", "-depth", "8", "rgb:-")


def program():
    """The command of ImageMagick 7 or 6, or None; another program is called "convert" on Windows."""
    for name in filter(None, map(shutil.which, ("magick", "convert"))):
        said = subprocess.run([name, "-version"], capture_output=True, text=True, check=False).stdout
        if "ImageMagick" in said:
            return name
    return None


def read_all(samples, folder):
    """Read the first image of each file: uint8 [files, height, width, 3]."""
    names = []
    for index, sample in enumerate(samples):
        path = folder / f"{index}.{sample.kind.form.lower()}"
        path.write_bytes(sample.content)
        names.append(f"{sample.kind.form}:{path}[0]")
    done = subprocess.run([program(), *names, *PIXELS], capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(len(samples), HEIGHT, WIDTH, 3)
