"""Subjects of benchmarks: thin networks with their checkpoints, and peers that are made up."""

from dataclasses import dataclass, field, replace

import numpy as np
from graphs import segmenter_of
from onnx_files import write_onnx

from benchmarks.contestants.base import BenchmarkModel, Contestant, LoadedContestant
from export.graph import build_graph, set_metadata
from export.proof import make_golden, network_run
from export.winograd.transform import rewrite
from runtime.card import CARD_KEY
from runtime.model_file.golden import GOLDEN_KEY
from unet_core.checkpoint import save_checkpoint


def write_subject(folder, *, forms=None, **config):
    """A subject on disk whose files are of one network, with a mean and std that matter; with `forms` one for CPUs."""
    segmenter, card = segmenter_of(**config)
    graph, golden = build_graph(segmenter, card), make_golden(segmenter, card)
    save_checkpoint(folder / "model.pth", segmenter.network.state_dict(), card)
    others = []
    if forms is not None:
        others.append(_write(folder / "model.cpu.onnx", rewrite(graph, forms), replace(card, target="cpu"), golden))
    model = _write(folder / "model.onnx", graph, card, golden)
    return BenchmarkModel.read(model, folder / "model.pth", others)


def _write(path, graph, card, golden):
    set_metadata(graph, {CARD_KEY: card.to_json(), GOLDEN_KEY: golden.to_json()})
    path.write_bytes(graph.SerializeToString())
    return path


def write_bare_subject(folder):
    """A subject without a checkpoint."""
    write_onnx(folder / "bare.onnx")
    return BenchmarkModel.read(folder / "bare.onnx")


@dataclass(frozen=True, kw_only=True)
class MadeUpContestant(Contestant):
    """Answers as the subject does, and tells what becomes of it.

    `off` is added to its answer; `reason` keeps it from running; `error` is raised when it is opened.
    """

    memory = 1.0

    off: float = 0.0
    reason: str | None = None
    error: Exception | None = None
    told: list = field(default_factory=list, compare=False)

    def unavailable_reason(self, subject):
        return self.reason

    def open(self, subject, threads, shape):
        self.told.append(("open", threads, shape))
        if self.error is not None:
            raise self.error
        answer = network_run(subject.segmenter())

        def run(images):
            self.told.append("run")
            return np.float32(answer(images) + self.off)

        return LoadedContestant(
            run=run, provider="made up", facts={"file": "f"}, close=lambda: self.told.append("close")
        )
