"""Fixtures of training and evaluation; PyTorch is imported in them, since light tests do without."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from caching import Decoding, write_pairs
from evaluating import SIZES
from folders import write_pair
from PIL import Image

from runtime.card import CARD_KEY
from unet_core.data.cache import Cache
from unet_core.data.pairs import find_pairs


@pytest.fixture(scope="session", autouse=True)
def _shared_exports(shared_exports):
    pass


@pytest.fixture
def config(data, tmp_path, plain_curves):
    """Two epochs of two steps on six noisy pictures."""
    from unet_core.config import TrainConfig

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
    """The number of pairs that were decoded."""
    return Decoding(monkeypatch)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Pictures of three sizes, a model that answers both classes on them, and its export, which takes seconds."""
    from measuring import write_model

    from export import export_onnx

    folder = tmp_path_factory.mktemp("source")
    for index, size in enumerate(SIZES):
        write_pair(folder / "data", "val", f"v{index}", size=size, seed=index)
    images = [pair.image for pair in find_pairs(folder / "data", "val")]
    write_model(folder / "model.pth", images)
    export_onnx(folder / "model.pth")
    return folder


@pytest.fixture
def views(source, tmp_path):
    """A copy of the pictures that a test may change."""
    return shutil.copytree(source / "data", tmp_path / "data")


@pytest.fixture
def model(source):
    return source / "model.pth"


@pytest.fixture
def models(source, tmp_path):
    """Checkpoint and export with another card: both files, and the network."""
    import onnx
    import torch
    from networks import make_network
    from sealing import save_sealed

    from runtime.predictor import Predictor
    from unet_core.checkpoint import save_checkpoint

    def write(change):
        card = change(Predictor(source / "model.onnx", "cpu").card)
        network = make_network()
        network.load_state_dict(torch.load(source / "model.pth")["state_dict"])
        save_checkpoint(tmp_path / "m.pth", network.state_dict(), replace(card, proof=None))
        graph = onnx.load(source / "model.onnx")
        (entry,) = (entry for entry in graph.metadata_props if entry.key == CARD_KEY)
        entry.value = card.to_json()
        save_sealed(graph, tmp_path / "m.onnx")
        return tmp_path / "m.pth", tmp_path / "m.onnx", network, card

    return write


@pytest.fixture
def several(views, tmp_path):
    """A checkpoint of three classes, and masks of their indices."""
    from measuring import write_model

    pairs = find_pairs(views, "val")
    network, card = write_model(tmp_path / "three.pth", [pair.image for pair in pairs], classes=3)
    for index, pair in enumerate(pairs):
        height, width = SIZES[index]
        blocks = np.random.default_rng(index).integers(0, 3, (4, 4))
        truth = np.kron(blocks, np.ones((15, 23))).astype(np.uint8)[:height, :width]
        pair.mask.unlink()
        Image.fromarray(truth).save(pair.mask.with_suffix(".png"))
    return tmp_path / "three.pth", network, card
