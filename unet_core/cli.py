"""unet-train and unet-evaluate: the same as `python -m unet_core.train` and `.evaluate`, and kind without PyTorch."""

from runtime.commands.entry import start


def train() -> None:
    """unet-train."""
    start("unet_core.train")


def evaluate() -> None:
    """unet-evaluate."""
    start("unet_core.evaluate", extra="train")
