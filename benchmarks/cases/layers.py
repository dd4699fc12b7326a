"""Layers: the time of each convolution as ONNX Runtime profiles it, in the default file and in the one for CPUs."""

from pathlib import Path

import onnx

from benchmarks.contestants.base import BenchmarkModel
from benchmarks.contestants.onnx_runtime import FOR_CPUS, OURS
from benchmarks.measuring.graph_cost import count_work
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped
from export.layers import layers_of
from export.winograd.autotune import profiled
from export.winograd.transform import FORMS
from runtime.model_file.golden import synthetic_image
from unet_core.reporting.progress import Display

PART = "layers"

TRANSPOSED = "gemm"
"""Form of a transposed convolution of values laid out as rows."""


def measure(
    benchmark_model: BenchmarkModel,
    *,
    threads: int,
    rounds: int = 20,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Milliseconds of each layer on the CPU, for one image as trained; the default file and that for CPUs take turns.

    A layer's time includes its Relu. The layer "other" is what changes the layout of values between layers. With a
    budget of `budget_s` seconds there are fewer `rounds`.

    Returns:
        A measurement for each layer and file. Facts: gflop, always those of the default file; form, which is "direct",
        a form of `export.winograd.transform`, or `TRANSPOSED`.
    """
    graph = onnx.load(benchmark_model.path)
    batch, (height, width) = 1, benchmark_model.card.input.size
    files, forms = {OURS: benchmark_model.path}, dict[str, dict[str, str]]()
    image = synthetic_image(height, width, benchmark_model.card.architecture.in_channels, seed=0)[None]
    layers = layers_of(graph)
    if benchmark_model.for_cpus:
        files[FOR_CPUS], forms[FOR_CPUS] = benchmark_model.for_cpus, forms_of(benchmark_model.for_cpus, layers)
    with pinned(threads), (display or Display(quiet=True)).bar(PART, rounds, unit="call") as advance:
        paths = {name: str(path) for name, path in files.items()}
        found = profiled(paths, layers, image, threads, rounds, budget_s=budget_s, advance=advance)
    gflop = {node.name: node.gflop for node in count_work(graph, batch, height, width).nodes}
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
    """The forms of those layers of a file for CPUs that are not computed directly."""
    names = {node.name for node in onnx.load(path, load_external_data=False).graph.node}
    return {layer: form for layer in layers for form in (*FORMS, TRANSPOSED) if f"{layer}.{form}" in names}
