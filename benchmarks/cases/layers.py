"""Where the time of a network goes: its convolutions as ONNX Runtime profiles them, direct and in the file for CPUs."""

from pathlib import Path

import onnx

from benchmarks.contestants.base import BenchmarkModel
from benchmarks.contestants.onnx_runtime import FOR_CPUS, OURS
from benchmarks.measuring.graph_cost import count
from benchmarks.measuring.timing import pinned
from benchmarks.results import Measurement, Settings, Skipped
from export.winograd.autotune import layers_of, profiled
from export.winograd.transform import FORMS
from runtime.model_file.golden import synthetic_image
from unet_core.reporting.progress import Display

PART = "layers"

TRANSPOSED = "gemm"
"""The form of a transposed convolution of rows."""


def measure(
    subject: BenchmarkModel,
    *,
    threads: int,
    rounds: int = 20,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Milliseconds of each layer on the CPU, one image as trained; the subject's files take turns.

    What a layer's Relu takes is its own; what changes layouts between the layers is "other". With `budget_s` seconds
    there are fewer `rounds`.

    Returns:
        A measurement for each layer and file. Facts: gflop, those of the file that is not for CPUs; form, how the file
        for CPUs computes it, "direct", a form of `export.winograd.transform`, or `TRANSPOSED`.
    """
    model = onnx.load(subject.model)
    batch, (height, width) = 1, subject.card.input.size
    files, forms = {OURS: subject.model}, dict[str, dict[str, str]]()
    image = synthetic_image(height, width, subject.card.architecture.in_channels, seed=0)[None]
    layers = layers_of(model)
    if subject.for_cpus:
        files[FOR_CPUS], forms[FOR_CPUS] = subject.for_cpus, forms_of(subject.for_cpus, layers)
    with pinned(threads), (display or Display(quiet=True)).bar(PART, rounds, unit="call") as advance:
        paths = {name: str(path) for name, path in files.items()}
        found = profiled(paths, layers, image, threads, rounds, budget_s=budget_s, advance=advance)
    gflop = {node.name: node.gflop for node in count(model, batch, height, width).nodes}
    measured: list[Measurement | Skipped] = []
    for name, times in found.items():
        for layer, values in times.items():
            settings: Settings = {
                "layer": layer,
                "batch": batch,
                "height": height,
                "width": width,
                "device": "cpu",
                "threads": threads,
            }
            facts: Settings = {}
            if layer in gflop:
                facts = {"gflop": gflop[layer], "form": forms.get(name, {}).get(layer, "direct")}
            measured.append(
                Measurement(
                    part=PART,
                    contestant=name,
                    settings=settings,
                    unit="ms",
                    values=tuple(values),
                    group=PART,
                    facts=facts,
                )
            )
    return measured


def forms_of(path: Path, layers: list[str]) -> dict[str, str]:
    """How a file for CPUs computes its layers, of those that are not direct."""
    names = {node.name for node in onnx.load(path, load_external_data=False).graph.node}
    return {layer: form for layer in layers for form in (*FORMS, TRANSPOSED) if f"{layer}.{form}" in names}
