"""Train and evaluate a PyTorch U-Net: `python -m unet_core.train`, `python -m unet_core.evaluate`."""
