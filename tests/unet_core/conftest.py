"""Fixtures of training."""

import pytest

from unet_core.config import TrainConfig


@pytest.fixture
def config(data, tmp_path):
    """Two epochs of two steps on six noisy pictures."""
    return TrainConfig(
        data=str(data),
        out=str(tmp_path / "run"),
        widths=(4, 8),
        height=32,
        width=48,
        batch_size=4,
        epochs=2,
        lr=1e-3,
        workers=0,
        tensorboard=False,
        device="cpu",
    )
