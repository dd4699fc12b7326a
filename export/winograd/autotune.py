"""Which form each convolution takes on this machine, by measuring: `unet-export --target cpu --tune`."""

import json
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from export.graph import MAX_BYTES, bytes_of
from export.winograd.row_layout import BODY
from export.winograd.transform import BLOCK, FORMS, Form, convolutions, rewrite
from runtime.card import ModelCard
from runtime.devices.session import session_options
from runtime.errors import ConfigError, OutputError
from runtime.model_file.golden import synthetic_image
from runtime.support.cpu_count import available_threads
from unet_core.reporting.progress import Advance, Display

Key = TypeVar("Key")

CALLS = 5
"""Calls that are profiled, after `UNCOUNTED` that do not count."""
UNCOUNTED = 2
OTHER = "other"
"""What belongs to no convolution: the change of layouts, for instance."""
ROUNDS = 7
"""Of the whole network as it is and in other forms, in turns."""
GAIN = 0.02
"""What another form must gain of the whole time to be taken: less is noise."""
LOST_ROUNDS = 1
"""In which it may be slower all the same: more are noise, of a busy machine say."""
LARGE = 4
"""Times as large are the blocks that are tried besides `BLOCK`; they are for large caches."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a graph is rewritten: the form of each convolution of 3x3 that is not direct, by name; and `BLOCK`."""

    forms: Mapping[str, Form]
    block: int = BLOCK

    def applied(self, model: onnx.ModelProto) -> onnx.ModelProto:
        return rewrite(model, self.forms, self.block)


def tuned(model: onnx.ModelProto, card: ModelCard, display: Display | None = None) -> Choice:
    """How the network is fastest on this machine: one image as trained.

    All convolutions in one form after the other give the time of each layer; each takes its fastest. Whether the whole
    is then faster, and in larger blocks faster still, is measured in turns with the graph as it is, which wins where
    it is not.

    Args:
        model: a graph that `export.graph` built.
    """
    display = display or Display(quiet=True)
    names = convolutions(model)
    image = synthetic_image(*card.input.size, card.architecture.in_channels, seed=0)[None]
    times = layer_times(model, image, display)
    fastest = _fastest(names, times)
    choices = [as_it_is := Choice(forms={})]
    for choice in (
        Choice(forms=fastest),
        Choice(forms=fastest, block=LARGE * BLOCK),
        Choice(forms=_fastest(names, times, ("f4", "f4-few"))),
    ):
        if choice.forms and choice not in choices:
            choices.append(choice)
    rounds = in_turns((choice.applied(model) for choice in choices), image)  # [choices, rounds]
    shares = rounds / rounds[0]
    best = int(np.argmin(np.median(shares, axis=1)))
    before, after = (1e3 * float(np.median(rounds[choice])) for choice in (0, best))
    if np.median(shares[best]) >= 1 - GAIN or (shares[best] >= 1).sum() > LOST_ROUNDS:
        display.note(f"tuned: one image takes {_ms(before)} ms here, and no other forms surely gain {GAIN:.0%}")
        return as_it_is
    display.note(f"tuned: one image takes {_ms(after)} ms instead of {_ms(before)} here, by medians of {ROUNDS} rounds")
    return choices[best]


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:.0f}"


def layer_times(model: onnx.ModelProto, image: NDArray[np.uint8], display: Display) -> dict[Form, dict[str, float]]:
    """Milliseconds of each layer where all convolutions have one form, by form and layer; medians of calls in turns.

    Forms in which one file cannot hold the whole are not tried.
    """
    names = convolutions(model)
    able = {}
    for form in FORMS:
        graph = rewrite(model, dict.fromkeys(names, form))
        if bytes_of(graph) <= MAX_BYTES:
            able[form] = graph.SerializeToString()
    with display.bar("tune", UNCOUNTED + CALLS, unit="call") as advance:
        found = profiled(able, layers_of(model), image, available_threads(), CALLS, advance=advance)
    return {form: {layer: float(np.median(own)) for layer, own in times.items()} for form, times in found.items()}


def layers_of(model: onnx.ModelProto) -> list[str]:
    """The names of its convolutions, transposed ones among them, in their order."""
    return [node.name for node in model.graph.node if node.op_type.startswith("Conv")]


def profiled(
    models: Mapping[Key, bytes | str],
    layers: Sequence[str],
    image: NDArray[np.uint8],
    threads: int,
    calls: int,
    *,
    budget_s: float | None = None,
    advance: Advance = lambda _: None,
) -> dict[Key, dict[str, list[float]]]:
    """Milliseconds of each layer in each call, by model and layer: profiled on the CPU, models in turns.

    Args:
        models: serialised, or the paths of files.
        layers: names of convolutions; a node belongs to the layer whose name its own has, and to `OTHER` without one.
        image: uint8 [batch, height, width, channels].
        calls: that count, after `UNCOUNTED` others.
        budget_s: seconds; then there are fewer calls, but not fewer than `CALLS`.

    Raises:
        OutputError: the folder for temporary files is full.
        ConfigError: images are so large that a profile has no room for a call that counts.
    """
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            key: _session(model, threads, Path(folder) / str(index))
            for index, (key, model) in enumerate(models.items())
        }
        started = time.perf_counter()
        for done in range(UNCOUNTED + calls):
            if budget_s is not None and done >= UNCOUNTED + CALLS and time.perf_counter() - started > budget_s:
                break
            for session in sessions.values():
                session.run(["probability"], {"image": image})
            advance(1)
        ended = {key: Path(session.end_profiling()) for key, session in sessions.items()}
        return {key: _by_layer(_events(profile), layers) for key, profile in ended.items()}


def _events(profile: Path) -> list[dict[str, Any]]:
    """The events that ONNX Runtime wrote; it does not say where it could not write all."""
    try:
        events: list[dict[str, Any]] = json.loads(profile.read_text())
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{tempfile.gettempdir()} cannot take the profiles by which layers are timed: make room there, for "
            "large images some hundred MB, or set TMPDIR to another folder"
        ) from error
    return events


def _fastest(
    names: Sequence[str], times: Mapping[Form, Mapping[str, float]], forms: Sequence[Form] = FORMS
) -> dict[str, Form]:
    allowed: tuple[Form, ...] = ("direct", *(form for form in forms if form != "direct" and form in times))
    best: dict[str, Form] = {name: min(allowed, key=lambda form: times[form][name]) for name in names}
    return {name: form for name, form in best.items() if form != "direct"}


def in_turns(models: Iterable[onnx.ModelProto], image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Seconds [graphs, rounds] that one image takes each graph in rounds in which all take turns."""
    sessions = [_session(model.SerializeToString(), available_threads()) for model in models]
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, own in zip(sessions, times, strict=True):
            session.run(["probability"], {"image": image})  # brings the weights into the caches
            started = time.perf_counter()
            session.run(["probability"], {"image": image})
            own.append(time.perf_counter() - started)
    return np.array(times)


def _session(model: bytes | str, threads: int, profile: Path | None = None) -> Any:
    options = session_options(threads)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _by_layer(events: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> dict[str, list[float]]:
    """Milliseconds in each call that counts, by layer.

    A profile ends after 1e6 events, in the middle of a call; such a call has nodes, but no `model_run`, which is
    written at its end.

    Raises:
        ConfigError: not one call that counts is in it.
    """
    longest_first = sorted(layers, key=len, reverse=True)
    runs = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event.get("name") == "model_run")
    if len(runs) <= UNCOUNTED:
        raise ConfigError(
            f"the layers cannot be timed: ONNX Runtime's profile has room for {len(runs)} calls of images of this "
            f"size, expected {UNCOUNTED + 1} at least; do without the times of layers, or give smaller images"
        )
    starts = [start for start, _ in runs]
    calls = [dict.fromkeys((*layers, OTHER), 0.0) for _ in runs]
    for event in events:
        node = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and node != event["name"] and f".{BODY}." not in node:
            layer = next((name for name in longest_first if name in node), OTHER)
            call = bisect_right(starts, event["ts"]) - 1
            if call >= 0 and event["ts"] < runs[call][1]:
                calls[call][layer] += event["dur"] / 1e3
    return {layer: [call[layer] for call in calls[UNCOUNTED:]] for layer in calls[0]}
