"""Fixtures of training."""

import pytest
from caching import Decoding, write_pairs

from unet_core.cache import Cache
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


@pytest.fixture
def pairs(tmp_path):
    """Five pictures, the last one without a mask."""
    return write_pairs(tmp_path / "pictures")


@pytest.fixture
def cache(tmp_path):
    """A cache with room for all."""
    return Cache(folder=tmp_path / "kept", limit=10**9)


@pytest.fixture
def decoding(monkeypatch):
    """How many pairs were decoded."""
    return Decoding(monkeypatch)
