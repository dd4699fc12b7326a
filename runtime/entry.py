"""unet-predict and unet-doctor: their modules are imported when they are run."""

from runtime.console import start


def predict() -> None:
    """unet-predict."""
    start("runtime.cli", "predict")


def doctor() -> None:
    """unet-doctor."""
    start("runtime.doctor")
