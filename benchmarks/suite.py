"""All parts of `unet-bench`: what each needs of what was asked for, and measuring them one after the other."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import training
from benchmarks.cases import (
    cold,
    latency,
    layers,
    loading,
    memory,
    parity,
    peaks,
    scaling,
    stages,
    throughput,
    tradeoff,
)
from benchmarks.contestants.base import Arithmetic, BenchmarkModel
from benchmarks.contestants.pytorch import usable
from benchmarks.results import Measurement, Skipped
from runtime.devices.availability import candidates
from runtime.errors import ConfigError, UnetError, one_line
from unet_core.config import TrainConfig, read_settings
from unet_core.reporting.progress import Display

Found = list[Measurement | Skipped]

LATENCY_SHARES = 5
"""How much more of the budget the latency gets than each other part, having a matrix of contestants and shapes."""


LOADINGS = 7
"""Rounds of loading, at most: each is a process for each file."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for, of all parts."""

    subject: BenchmarkModel
    data: Path | None
    images: Sequence[Path]
    batches: Sequence[int]
    sizes: Sequence[tuple[int, int]]
    precisions: Sequence[Arithmetic]
    peers: Sequence[str]
    device: str
    threads: int
    rounds: int
    predictions: int
    folder_sizes: Sequence[int]
    side: int
    recipe: Path | None
    bases: Sequence[int]
    limit_s: float
    work: Path
    display: Display
    peaks: list[Measurement] = field(default_factory=list)

    @property
    def image(self) -> Path | None:
        """The first real image."""
        return self.images[0] if self.images else None

    @property
    def one_device(self) -> str:
        """Of the parts that run on one: the CPU, unless another was asked for."""
        return "cpu" if self.device == "auto" else self.device

    @property
    def common(self) -> dict[str, Any]:
        """What every part takes."""
        return {"threads": self.threads, "display": self.display}


def _peak(plan: Plan, budget_s: float | None) -> Found:
    plan.display.note(f"peak: {plan.rounds} rounds")
    gpu = candidates("cuda" if plan.device == "auto" else plan.device)[-1]
    places = ["cpu"] if gpu.kind == "cpu" or not usable(gpu) else ["cpu", f"cuda:{gpu.index}"]
    for place in places:
        share = budget_s and budget_s / len(places)
        plan.peaks.extend(peaks.measure(threads=plan.threads, device=place, rounds=plan.rounds, budget_s=share))
    return [*plan.peaks]


def _latency(plan: Plan, budget_s: float | None) -> Found:
    return latency.measure(
        plan.subject,
        batches=plan.batches,
        sizes=plan.sizes or [plan.subject.card.input.size],
        precisions=plan.precisions,
        peers=plan.peers,
        device=plan.device,
        rounds=plan.rounds,
        budget_s=budget_s,
        peaks=plan.peaks,
        **plan.common,
    )


def _overhead(plan: Plan, budget_s: float | None) -> Found:
    return throughput.overhead(plan.subject.model, plan.image, rounds=plan.rounds, budget_s=budget_s, **plan.common)


def _stages(plan: Plan, budget_s: float | None) -> Found:
    return stages.measure(
        plan.subject.model, plan.image, device=plan.one_device, rounds=plan.rounds, budget_s=budget_s, **plan.common
    )


def _folder(plan: Plan, budget_s: float | None) -> Found:
    return throughput.folder(
        plan.subject.model,
        plan.subject.checkpoint,
        plan.images,
        folder_sizes=plan.folder_sizes,
        budget_s=budget_s and budget_s / len(plan.folder_sizes),
        **plan.common,
    )


def _cold(plan: Plan, budget_s: float | None) -> Found:
    return cold.measure(plan.subject.model, plan.image, rounds=plan.rounds, budget_s=budget_s, **plan.common)


def _loading(plan: Plan, budget_s: float | None) -> Found:
    return loading.measure(plan.subject, rounds=min(plan.rounds, LOADINGS), budget_s=budget_s, **plan.common)


def _layers(plan: Plan, budget_s: float | None) -> Found:
    return layers.measure(plan.subject, rounds=plan.rounds, budget_s=budget_s, **plan.common)


def _memory(plan: Plan, budget_s: float | None) -> Found:
    return memory.measure(
        plan.subject.model, predictions=plan.predictions, side=plan.side, budget_s=budget_s, **plan.common
    )


def _scaling(plan: Plan, budget_s: float | None) -> Found:
    return scaling.measure(plan.subject.model, rounds=plan.rounds, budget_s=budget_s, **plan.common)


def _parity(plan: Plan, _: float | None) -> Found:
    return parity.measure(
        plan.subject.model, plan.subject.checkpoint, plan.images, device=plan.one_device, **plan.common
    )


def _trade_off(plan: Plan, _: float | None) -> Found:
    return tradeoff.measure(
        _config(plan),
        plan.work,
        bases=plan.bases,
        limit_s=plan.limit_s,
        device=plan.one_device,
        rounds=plan.rounds,
        **plan.common,
    )


def _training(plan: Plan, _: float | None) -> Found:
    config = replace(_config(plan), amp="off")  # as the bare loop; on CUDA others are contestants of their own
    return training.measure(config, rounds=plan.rounds, **plan.common)


PARTS: Mapping[str, Callable[[Plan, float | None], Found]] = {
    "peak": _peak,
    "latency": _latency,
    "layers": _layers,
    "overhead": _overhead,
    "stages": _stages,
    "folder": _folder,
    "loading": _loading,
    "cold-start": _cold,
    "memory": _memory,
    "scaling": _scaling,
    "parity": _parity,
    "training": _training,
    "trade-off": _trade_off,
}
"""All parts by their names on the command line, in the order in which they are measured; "memory" has the tiles too."""

RESULTS_OF = {"cold-start": ("cold start",), "memory": ("memory", "tiles")}
"""What parts are called in results, where that is not their name on the command line."""

ON_REQUEST = ("training", "trade-off")
"""Parts that train, and so are measured only where they are named."""

CPU_ONLY = ("layers", "overhead", "folder", "loading", "cold-start", "memory", "scaling")
"""Parts that are measured on the CPU, whatever else there is."""


def _config(plan: Plan) -> TrainConfig:
    """The settings of the runs of `ON_REQUEST`: the recipe's, of a network like the model's."""
    if plan.data is None:
        raise ConfigError("--data: is needed to train; give the folder with train_images/ and train_masks/")
    recipe = read_settings(plan.recipe) if plan.recipe is not None else {}
    own = {name: value for name, value in recipe.items() if name not in ("data", "out")}
    if plan.device != "auto":
        own["device"] = plan.device
    return training.config_like(plan.subject.card, plan.data, **own)


def measure(plan: Plan, parts: Iterable[str], budget_s: float | None = None) -> Iterator[Found]:
    """Measure the parts in order; one that cannot be measured is `Skipped` with its reason, and does not stop the rest.

    Of the budget, in seconds, each part may take its share of what is left.

    Yields:
        What each part found.
    """
    started = time.monotonic()
    chosen = [name for name in PARTS if name in set(parts)]
    for index, name in enumerate(chosen):
        left = None if budget_s is None else max(0.0, budget_s - (time.monotonic() - started))
        weights = [LATENCY_SHARES if other == "latency" else 1 for other in chosen[index:]]
        if left == 0:
            yield skipped_part(name, "nothing of the budget is left")
            continue
        if name in CPU_ONLY and plan.device not in ("auto", "cpu"):
            yield skipped_part(name, "is measured on the CPU; give --device cpu, or auto for both")
            continue
        try:
            yield PARTS[name](plan, None if left is None else left * weights[0] / sum(weights))
        except Exception as error:  # libraries' errors share no base class, and hours of other parts hang on this one
            text = one_line(str(error))[:1000]
            reason = text if isinstance(error, UnetError) else f"{type(error).__name__}: {text}"
            plan.display.note(f"{name}: {reason}")
            yield skipped_part(name, reason)


def skipped_part(name: str, reason: str) -> Found:
    """What stands in the results for a part that was not measured."""
    return [Skipped(part=part, contestant="all", settings={}, reason=reason) for part in RESULTS_OF.get(name, (name,))]
