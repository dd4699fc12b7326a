"""A trained network: random ones give no honest masks. It takes seconds, so `conftest` has one made for all workers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from folders import write_pair
from PIL import Image

from export.graph import build_graph
from export.proof import graph_run
from export.samples import Samples, load_samples
from runtime.card import ModelCard
from runtime.model_file.golden import NetworkFunction
from unet_core.checkpoint import load_checkpoint
from unet_core.config import TrainConfig
from unet_core.model import Segmenter
from unet_core.train import train
from unet_core.training import run_directory

SIZE = (64, 96)


def write_grey_pair(folder, split, name, seed):
    """A pair whose rectangle is grey beside a white bar: where high values are cut off, both look alike."""
    mask = write_pair(folder, split, name, size=SIZE, seed=seed)
    image = np.random.default_rng(seed).integers(0, 60, (*SIZE, 3)) + 90 * mask[:, :, None]
    image[seed % 40 : seed % 40 + 12] += 190 * (1 - mask[seed % 40 : seed % 40 + 12, :, None])
    Image.fromarray(image.astype(np.uint8)).save(folder / f"{split}_images" / f"{name}.jpg")


@dataclass(frozen=True)
class Trained:
    """A trained network: its file, its data set, and what an export makes of them."""

    checkpoint: Path
    data: Path
    card: ModelCard
    segmenter: Segmenter
    graph: onnx.ModelProto
    exact: NetworkFunction
    samples: Samples


def write_no_curves(path, history, classes=()):
    """Stands in for `save_curves`."""
    Path(path).write_text(f"curves of {len(history)} epochs\n")


def train_in(folder):
    """Write a data set and train a thin network on it."""
    for index in range(16):
        write_grey_pair(folder / "data", "train", f"car{index}", seed=index)
    for index in range(6):
        write_grey_pair(folder / "data", "val", f"val{index}", seed=100 + index)
    config = TrainConfig(
        data=str(folder / "data"),
        out=str(folder / "run"),
        widths=(4, 8),
        height=SIZE[0],
        width=SIZE[1],
        batch_size=4,
        epochs=20,
        lr=1e-2,
        workers=0,
        cache_gb=0,
        tensorboard=False,
        device="cpu",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_directory, "save_curves", write_no_curves)
        threads = torch.get_num_threads()
        torch.set_num_threads(2)  # sums are rounded by threads, and tests tell which layers this network needs in fp32
        try:
            train(config)
        finally:
            torch.set_num_threads(threads)


def load_trained(folder):
    """Load what `train_in` left, and export its graph."""
    checkpoint = folder / "run" / "model.pth"
    loaded = load_checkpoint(checkpoint)
    assert loaded.card.training.metrics["image_dice"] > 0.98
    segmenter = Segmenter(loaded.network(), loaded.card).eval()
    graph = build_graph(segmenter, loaded.card)
    samples = load_samples(folder / "data", loaded.card)
    return Trained(checkpoint, folder / "data", loaded.card, segmenter, graph, graph_run(graph), samples)
