"""Which form each convolution takes on this machine, by measuring: `unet-export --target cpu --tune`."""

import json
import tempfile
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from export.graph import MAX_BYTES, bytes_of
from export.rows import BODY
from export.winograd import FORMS, Form, convolutions, rewrite
from runtime.card import ModelCard
from runtime.cores import available_threads
from runtime.golden import synthetic_image
from runtime.options import session_options
from unet_core.display import Display

CALLS = 5
"""Calls that are profiled, after two that are not."""
ROUNDS = 7
"""Of the whole network as it is and in other forms, in turns."""
GAIN = 0.02
"""What another form must gain of the whole time to be taken: less is noise."""


def tuned(model: onnx.ModelProto, card: ModelCard, display: Display | None = None) -> dict[str, Form]:
    """The form of each convolution of 3x3 that makes the network fastest on this machine: one image as trained.

    All convolutions in one form after the other give the time of each layer; each takes its fastest. Whether the whole
    is then faster is measured in turns with the graph as it is, which wins where it is not.

    Args:
        model: a graph that `export.graph` built.

    Returns:
        By the name of the convolution; those that stay direct are not in it.
    """
    display = display or Display(quiet=True)
    names = convolutions(model)
    image = synthetic_image(*card.input.size, card.architecture.in_channels, seed=0)[None]
    times = layer_times(model, image, display)
    candidates: list[dict[str, Form]] = [{}, _fastest(names, times), _fastest(names, times, ("f4", "f4-few"))]
    seconds = in_turns([rewrite(model, forms) for forms in candidates], image)
    best = int(np.argmin(seconds))
    forms = candidates[best] if seconds[best] < (1 - GAIN) * seconds[0] else {}
    display.note(
        f"tuned: {len(forms)} of {len(names)} convolutions by Winograd's filtering; one image takes "
        f"{1e3 * min(seconds[best], seconds[0]):.3g} ms instead of {1e3 * seconds[0]:.3g} here"
    )
    return forms


def layer_times(model: onnx.ModelProto, image: NDArray[np.uint8], display: Display) -> dict[Form, dict[str, float]]:
    """Milliseconds of each layer where all convolutions have one form, by form and layer; medians of calls in turns.

    Forms in which one file cannot hold the whole are not tried.
    """
    names = convolutions(model)
    layers = sorted((node.name for node in model.graph.node if node.op_type.startswith("Conv")), key=len, reverse=True)
    with tempfile.TemporaryDirectory() as folder, display.bar("tune", CALLS + 2, unit="call") as advance:
        sessions = {
            form: _session(graph, Path(folder) / form)
            for form in FORMS
            if bytes_of(graph := rewrite(model, dict.fromkeys(names, form))) <= MAX_BYTES
        }
        for _ in range(CALLS + 2):
            for session in sessions.values():
                session.run(["probability"], {"image": image})
            advance(1)
        profiles = {form: Path(session.end_profiling()).read_text() for form, session in sessions.items()}
    return {form: _by_layer(json.loads(profile), layers) for form, profile in profiles.items()}


def _fastest(
    names: Sequence[str], times: Mapping[Form, Mapping[str, float]], forms: Sequence[Form] = FORMS
) -> dict[str, Form]:
    allowed: tuple[Form, ...] = ("direct", *(form for form in forms if form != "direct" and form in times))
    best: dict[str, Form] = {name: min(allowed, key=lambda form: times[form][name]) for name in names}
    return {name: form for name, form in best.items() if form != "direct"}


def in_turns(models: Sequence[onnx.ModelProto], image: NDArray[np.uint8]) -> list[float]:
    """Seconds that one image takes each graph, the median of rounds in which all take turns."""
    sessions = [_session(model) for model in models]
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, own in zip(sessions, times, strict=True):
            session.run(["probability"], {"image": image})  # brings the weights into the caches
            started = time.perf_counter()
            session.run(["probability"], {"image": image})
            own.append(time.perf_counter() - started)
    return [float(np.median(own)) for own in times]


def _session(model: onnx.ModelProto, profile: Path | None = None) -> Any:
    options = session_options(available_threads())
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _by_layer(events: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> dict[str, float]:
    """Milliseconds a call by layer, whose name is in the names of its nodes; what belongs to none is "other"."""
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    calls = [dict.fromkeys((*layers, "other"), 0.0) for _ in starts]
    for event in events:
        node = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and node != event["name"] and f".{BODY}." not in node:
            layer = next((name for name in layers if name in node), "other")
            calls[bisect_right(starts, event["ts"]) - 1][layer] += event["dur"] / 1e3
    return {layer: float(np.median([call[layer] for call in calls[2:]])) for layer in calls[0]}
