"""Choice of each convolution's form by measuring on this machine: `unet-export --target cpu --tune`."""

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

from export.layers import MAX_WEIGHT_BYTES, bytes_of, layers_of
from export.winograd.row_layout import BODY
from export.winograd.transform import BLOCK, FORMS, Form, rewritable, rewrite
from runtime.card import ModelCard
from runtime.devices.session import session_options
from runtime.errors import ConfigError, OutputError
from runtime.model_file.golden import synthetic_image
from runtime.support.cpu_count import available_threads
from unet_core.reporting.progress import Advance, Display

Key = TypeVar("Key")

CALLS = 5
"""Number of profiled calls that count, after `UNCOUNTED` ones."""

UNCOUNTED = 2

OTHER = "other"
"""Key of the nodes that belong to no convolution, such as changes of layout."""

ROUNDS = 7
"""Number of rounds in which the whole network is timed in each form."""

GAIN = 0.02
"""Share of the whole time that other forms have to save to be taken; less is noise."""

LOST_ROUNDS = 1
"""Number of rounds in which they may be slower all the same; more are noise, of a busy machine for instance."""

LARGE = 4
"""Factor of the larger blocks that are tried besides `BLOCK`; they are for large caches."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A choice of forms: the form of each convolution of 3x3 that is not direct, by name; `block` as `BLOCK`."""

    forms: Mapping[str, Form]
    block: int = BLOCK

    def applied(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return a copy of a graph that is rewritten so."""
        return rewrite(model, self.forms, self.block)


def tuned(model: onnx.ModelProto, card: ModelCard, display: Display | None = None) -> Choice:
    """Choose the forms in which the network is fastest on this machine, for one image of the trained size.

    Each layer is timed with all convolutions in one form after the other, and takes its fastest form. The whole network
    is then timed in these forms, also in larger blocks, in rounds that alternate with the graph as it is. That stays
    unless another choice is faster.

    Args:
        model: a graph that `export.graph` built.
    """
    display = display or Display(quiet=True)
    names = rewritable(model)
    image = synthetic_image(*card.input.size, card.architecture.in_channels, seed=0)[None]
    image = np.repeat(image, card.input.fixed_batch or 1, axis=0)
    times = layer_times(model, image, display)
    fastest = fastest_forms(names, times)
    choices = [unchanged := Choice(forms={})]
    for choice in (
        Choice(forms=fastest),
        Choice(forms=fastest, block=LARGE * BLOCK),
        Choice(forms=fastest_forms(names, times, ("f4", "f4-few"))),
    ):
        if choice.forms and choice not in choices:
            choices.append(choice)
    rounds = interleaved((choice.applied(model) for choice in choices), image)  # [choices, rounds]
    shares = rounds / rounds[0]
    best = int(np.argmin(np.median(shares, axis=1)))
    before, after = (1e3 * float(np.median(rounds[choice])) for choice in (0, best))
    if np.median(shares[best]) >= 1 - GAIN or (shares[best] >= 1).sum() > LOST_ROUNDS:
        display.note(f"tuned: one image takes {_ms(before)} ms here; no other forms surely save {GAIN:.0%}")
        return unchanged
    display.note(f"tuned: one image takes {_ms(after)} ms instead of {_ms(before)} here, by medians of {ROUNDS} rounds")
    return choices[best]


def _ms(milliseconds: float) -> str:
    """Write milliseconds with three digits."""
    return f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:.0f}"


def layer_times(model: onnx.ModelProto, image: NDArray[np.uint8], display: Display) -> dict[Form, dict[str, float]]:
    """Measure each layer with all convolutions in one form; return medians in milliseconds by form and layer.

    Forms in which the weights are too large for one file are left out.
    """
    names = rewritable(model)
    able = {}
    for form in FORMS:
        graph = rewrite(model, dict.fromkeys(names, form))
        if bytes_of(graph) <= MAX_WEIGHT_BYTES:
            able[form] = graph.SerializeToString()
    with display.bar("tune", UNCOUNTED + CALLS, unit="call") as advance:
        found = profiled(able, layers_of(model), image, available_threads(), CALLS, advance=advance)
    return {form: {layer: float(np.median(own)) for layer, own in times.items()} for form, times in found.items()}


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
    """Profile models on the CPU, interleaved; return milliseconds by model and layer, one for each call.

    Args:
        models: serialised models, or paths of files.
        layers: names of convolutions. A node belongs to the layer whose name is in its own, otherwise to `OTHER`.
        image: uint8 [batch, height, width, channels].
        threads: number of threads of each session.
        calls: number of calls that count, after `UNCOUNTED` others.
        budget_s: time in seconds after which no more calls are made, once there are `CALLS`.
        advance: called with 1 after each call of all models.

    Raises:
        OutputError: the folder for temporary files is full.
        ConfigError: the images are so large that a profile has no room for a call that counts.
    """
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            key: timing_session(model, threads, Path(folder) / str(index))
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
        return {key: by_layer(read_events(profile), layers) for key, profile in ended.items()}


def read_events(profile: Path) -> list[dict[str, Any]]:
    """Read the events that ONNX Runtime wrote; it does not tell if it could not write all of them."""
    try:
        events: list[dict[str, Any]] = json.loads(profile.read_text())
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{tempfile.gettempdir()} cannot take the profiles by which layers are timed: make room there, for "
            "large images some hundred MB, or set TMPDIR to another folder"
        ) from error
    return events


def fastest_forms(
    names: Sequence[str], times: Mapping[Form, Mapping[str, float]], forms: Sequence[Form] = FORMS
) -> dict[str, Form]:
    """Choose the fastest of some forms for each layer; those that stay direct are left out."""
    allowed: tuple[Form, ...] = ("direct", *(form for form in forms if form != "direct" and form in times))
    best: dict[str, Form] = {name: min(allowed, key=lambda form: times[form][name]) for name in names}
    return {name: form for name, form in best.items() if form != "direct"}


def interleaved(models: Iterable[onnx.ModelProto], image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Time one image in each graph, in rounds that alternate between them; return seconds [graphs, rounds]."""
    sessions = [timing_session(model.SerializeToString(), available_threads()) for model in models]
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, own in zip(sessions, times, strict=True):
            session.run(["probability"], {"image": image})  # brings the weights into the caches
            started = time.perf_counter()
            session.run(["probability"], {"image": image})
            own.append(time.perf_counter() - started)
    return np.array(times)


def timing_session(model: bytes | str, threads: int, profile: Path | None = None) -> Any:
    """Open a session on the CPU, which writes a profile if `profile` is given."""
    options = session_options(threads)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def by_layer(events: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> dict[str, list[float]]:
    """Sum up the milliseconds of each layer in each call that counts.

    A profile ends after 1e6 events, in the middle of a call. Such a call has nodes but no `model_run`, which is written
    at its end.

    Raises:
        ConfigError: the profile holds no call that counts.
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
