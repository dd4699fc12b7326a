"""Subjects of benchmarks: thin networks with their checkpoints, and peers that are made up."""

from dataclasses import dataclass, field

import numpy as np
from graphs import segmenter_of
from onnx_files import write_onnx

from benchmarks.peer import Opened, Peer, Subject
from export.graph import build_graph, set_metadata
from export.proof import make_golden, network_run
from runtime.card import CARD_KEY
from runtime.golden import GOLDEN_KEY
from unet_core.checkpoint import save_checkpoint


def write_subject(folder, **config):
    """A subject on disk whose files are of one network, with a mean and std that matter."""
    segmenter, card = segmenter_of(**config)
    graph = build_graph(segmenter, card)
    set_metadata(graph, {CARD_KEY: card.to_json(), GOLDEN_KEY: make_golden(segmenter, card).to_json()})
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    save_checkpoint(folder / "model.pth", segmenter.network.state_dict(), card)
    return Subject.read(folder / "model.onnx", folder / "model.pth")


def write_bare_subject(folder):
    """A subject without a checkpoint."""
    write_onnx(folder / "bare.onnx")
    return Subject.read(folder / "bare.onnx")


@dataclass(frozen=True, kw_only=True)
class MadeUpPeer(Peer):
    """Answers as the subject does, and tells what becomes of it.

    `off` is added to its answer; `reason` keeps it from running; `error` is raised when it is opened.
    """

    memory = 1.0

    off: float = 0.0
    reason: str | None = None
    error: Exception | None = None
    told: list = field(default_factory=list, compare=False)

    def why_not(self, subject):
        return self.reason

    def open(self, subject, threads, shape):
        self.told.append(("open", threads, shape))
        if self.error is not None:
            raise self.error
        answer = network_run(subject.segmenter())

        def run(images):
            self.told.append("run")
            return np.float32(answer(images) + self.off)

        return Opened(run=run, provider="made up", facts={"file": "f"}, close=lambda: self.told.append("close"))
