"""unet-doctor: checks of the installation, its devices and a model, with advice for every problem."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.commands.console import Command, Named, echo
from runtime.support.sizes import batch_text
from runtime.support.version import installed_version

if TYPE_CHECKING:
    from runtime.commands.diagnostics import Findings

UNUSED_DAYS = 30.0
"""Default of --unused-days."""


@click.command(cls=Command)
@click.argument("model", required=False, type=Named())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--prune", is_flag=True, help="Delete TensorRT engines that are unused or unfinished.")
@click.option(
    "--unused-days",
    type=click.FloatRange(0),
    help=f"With --prune: minimum days since an engine's last use; 0 deletes all.  [default: {UNUSED_DAYS:g}]",
)
def main(model: Path | None, as_json: bool, prune: bool, unused_days: float | None) -> None:
    """Check this installation, its devices and MODEL (an .onnx file), and say what to do about each problem.

    Nothing is sent anywhere. Only --prune changes files. Exit code: 0 if everything works that this machine has (a GPU
    is not required), 1 if something is broken, 2 for wrong arguments or if the report cannot be written.
    """
    if unused_days is not None and not prune:
        raise click.UsageError("--unused-days needs --prune")
    from runtime.commands import diagnostics  # --help can do without

    findings = diagnostics.Findings()
    findings.look("installed", diagnostics.installed)
    findings.look("gpu", diagnostics.gpu)
    findings.look("devices", diagnostics.devices, by_onnxruntime=True)
    findings.look("threads", diagnostics.threads)
    days = UNUSED_DAYS if unused_days is None else unused_days
    findings.look("engines", partial(diagnostics.engines, prune=prune, unused_days=days))
    if model is not None:
        findings.look("model", partial(diagnostics.model, path=model), by_onnxruntime=True)
    problems = findings.ranked()
    ok = not any(problem.severity == "error" for problem in problems)
    if as_json:
        listed = [asdict(problem) for problem in problems]
        report = {"version": installed_version(), **findings.parts, "problems": listed, "ok": ok}
        echo(json.dumps(report, indent=1, default=str))
    else:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # None if stdout is closed
        for line in report_lines(findings):
            line = line.replace("\n", "\\n")  # a card may hold anything
            echo(line.encode(encoding, "backslashreplace").decode(encoding))
    click.get_current_context().exit(0 if ok else 1)


def report_lines(findings: "Findings") -> Iterator[str]:
    """Yield the lines of the report."""
    writers = {
        "installed": installed_lines,
        "gpu": gpu_lines,
        "devices": device_lines,
        "threads": thread_lines,
        "engines": engine_lines,
        "model": model_lines,
    }
    for part, found in findings.parts.items():
        yield part.capitalize() if part != "gpu" else "GPU"
        lines = [found["failed"]] if "failed" in found else writers[part](found)
        yield from (f"  {line}" for line in lines)
        yield ""
    problems = findings.ranked()
    yield "Problems, worst first" if problems else "No problems found."
    for number, problem in enumerate(problems, 1):
        yield f"  {number}. {problem.severity}: {problem.what}"
        yield f"     {problem.do}"


def installed_lines(found: dict[str, Any]) -> Iterator[str]:
    yield found["python"]
    yield ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    if found["onnxruntime"]:
        yield f"imported: ONNX Runtime {found['onnxruntime']}"


def gpu_lines(found: dict[str, Any]) -> Iterator[str]:
    if not found["driver"] and found["cuda_gpus"] is not None:
        yield f"GPUs that the NVIDIA driver sees: {found['cuda_gpus']}; without NVML (libnvidia-ml) no more is known"
        yield "in a container: start it with the variable NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        return
    if not found["driver"]:
        yield "no NVIDIA driver" + (f", {found['plugged_in']} GPUs installed" if found["plugged_in"] else "")
        return
    yield f"NVIDIA driver {found['driver']}"
    for index, one in enumerate(found["gpus"]):
        total, free = one["memory_bytes"], one["free_bytes"]
        yield f"{index}: {one['name']}" + (f", {gigabytes(free)} of {gigabytes(total)} free" if total else "")


def device_lines(found: dict[str, Any]) -> Iterator[str]:
    for device, missing in found.items():
        yield f"{device:9} {missing or 'available'}"


def thread_lines(found: dict[str, Any]) -> Iterator[str]:
    quota = "none" if found["quota"] is None else f"{found['quota']:g} cores"
    yield (
        f"{found['threads']} threads for a prediction; this process may use {found['allowed']} of {found['machine']} "
        f"cores, quota of its cgroup: {quota}"
    )
    if found["instructions"]:
        yield f"instructions: {', '.join(found['instructions'])} (docs/export.md says which file is fast with them)"
    if found["other_programs"] is not None:
        yield f"other programs use {found['other_programs']:.1f} of these {found['allowed']} cores"
    for name, value in found["environment"].items():
        yield f"{name}={value} ({found['explained'][name]})"


def engine_lines(found: dict[str, Any]) -> Iterator[str]:
    total = gigabytes(sum(one["bytes"] for one in found["engines"]))
    yield f"{found['folder']}: {len(found['engines'])} engines, {total}" + (
        f", {len(found['removed'])} removed" if found["removed"] else ""
    )
    for one in found["engines"]:
        days = (time.time() - one["used"]) / 86_400
        yield f"{one['key'][:12]} {gigabytes(one['bytes'])}, {one['about'].get('model', '?')}, used {days:.0f} days ago"


def model_lines(found: dict[str, Any]) -> Iterator[str]:
    card = found["card"]
    height, width = card["size"]
    yield f"{found['path']}, {gigabytes(found['bytes'])}: safe to load, card read, digest {found['digest']}"
    fixed = f", batches of {batch_text(card['fixed_shape'])} only" if card["fixed_shape"] else ""
    classes = ", ".join(card["classes"][:8]) + (", each by itself" if card["activation"] == "sigmoids" else "")
    fit = card["fit"] + (f" at {card['scale']:g} of its size" if card["scale"] != 1 else "")
    yield f"{card['name']}: {classes}; {width}x{height} {card['channels']}, {fit}{fixed}; " + (
        f"{card['precision']}{', for CPUs' if card['target'] == 'cpu' else ''}{', bf16 permitted' * card['bf16']}, "
        f"{card['architecture']}"
    )
    if card["metrics"]:
        yield ", ".join(f"{name} {value:.4g}" for name, value in card["metrics"].items())
    for device, one in found["devices"].items():
        if "failed" in one:
            yield f"{device:9} {one['failed']}"
            continue
        nodes, taken = ", ".join(f"{count} on {name}" for name, count in one["nodes"].items()), one["latency"]
        layers = f"layers in {one['arithmetic']}, " if one["arithmetic"] else ""
        checked = f"golden sample off by {one['golden_error']:.1e} (limit {one['tolerance']:g})"
        yield f"{device:9} {layers}{checked}; nodes: {nodes}"
        yield (
            f"{'':9} {taken['median_ms']:.1f} ms an image of {width}x{height} (fastest {taken['fastest_ms']:.1f}, "
            f"95 % within {taken['p95_ms']:.1f} ms, {taken['runs']} runs, {one['threads']} threads), "
            f"{1e3 / taken['median_ms']:.0f} images/s"
        )
        for count, median in one.get("fewer_threads_ms", {}).items():
            yield f"{'':9} {median:.1f} ms with {count} thread{'s' * (count > 1)}"


def gigabytes(count: float) -> str:
    """A number of bytes for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
