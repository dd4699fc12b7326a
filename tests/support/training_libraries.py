"""Imports everything that a training imports, for the server that `forked` starts processes from."""

import torch._dynamo  # noqa: F401  every optimizer imports it

import unet_core.reporting.curves
import unet_core.training.run  # noqa: F401
from unet_core.data.augmentation import augmentation

augmentation("basic")  # imports albumentations
