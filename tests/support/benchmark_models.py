"""Models for benchmarks, of thin networks with their checkpoints, and a contestant that is made up."""

import importlib.util
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from graphs import segmenter_of
from onnx.helper import set_model_props
from onnx_files import write_onnx

from benchmarks.contestants.base import BenchmarkModel, Contestant, LoadedContestant
from export.graph import build_graph
from export.proof import make_golden, network_run
from export.winograd.transform import rewrite
from runtime.card import CARD_KEY
from runtime.model_file.golden import GOLDEN_KEY
from unet_core.checkpoint import save_checkpoint


def write_benchmark_model(folder, *, forms=None, **config):
    """Write a model with a mean and std that matter and its checkpoint; with `forms` also a file for CPUs."""
    segmenter, card = segmenter_of(**config)
    graph, golden = build_graph(segmenter, card), make_golden(segmenter, card, candidates=0)
    save_checkpoint(folder / "model.pth", segmenter.network.state_dict(), card)
    others = []
    if forms is not None:
        others.append(_write(folder / "model.cpu.onnx", rewrite(graph, forms), replace(card, target="cpu"), golden))
    model = _write(folder / "model.onnx", graph, card, golden)
    return BenchmarkModel.read(model, folder / "model.pth", others)


def require_installed(*modules):
    """Skip the test unless these packages, which are no dependencies, are installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs packages that are no dependency: {', '.join(missing)}")


def _write(path, graph, card, golden):
    set_model_props(graph, {CARD_KEY: card.to_json(), GOLDEN_KEY: golden.to_json()})
    path.write_bytes(graph.SerializeToString())
    return path


def write_bare_benchmark_model(folder):
    """Write a model without a checkpoint."""
    write_onnx(folder / "bare.onnx")
    return BenchmarkModel.read(folder / "bare.onnx")


@dataclass(frozen=True, kw_only=True)
class MadeUpContestant(Contestant):
    """Answers as the model does, and notes its calls in `told`.

    `off` is added to its answer; `reason` makes it unavailable; `error` is raised when it is loaded.
    """

    memory = 1.0

    name: str
    off: float = 0.0
    reason: str | None = None
    error: Exception | None = None
    told: list = field(default_factory=list, compare=False)

    def unavailable_reason(self, model):
        return self.reason

    def load(self, model, threads, shape):
        self.told.append(("load", threads, shape))
        if self.error is not None:
            raise self.error
        answer = network_run(model.segmenter())

        def run(images):
            self.told.append("run")
            return np.float32(answer(images) + self.off)

        return LoadedContestant(
            run=run, provider="made up", facts={"file": "f"}, close=lambda: self.told.append("close")
        )
