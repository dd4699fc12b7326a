"""That a file of weights is there, which is said before PyTorch is imported: that takes seconds."""

import os

from runtime.errors import CheckpointError


def require_weights(path: str | os.PathLike[str]) -> None:
    """Raise a CheckpointError if there is no such file or folder."""
    if not os.path.exists(path):  # noqa: PTH110 - unlike Path.exists it takes any name
        raise CheckpointError(f"{path}: no such file; expected a checkpoint, such as model.pth of a training run")
