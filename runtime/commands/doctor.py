"""unet-doctor: what is installed, what runs here and how fast, and what to do about the rest."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from runtime.commands import diagnostics
from runtime.commands.console import Command, Named, installed_version, version_option
from runtime.commands.diagnostics import Findings

UNUSED_DAYS = 30.0


@click.command(cls=Command)
@click.argument("model", required=False, type=Named())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--prune", is_flag=True, help="Remove TensorRT engines that were not used for long, and unfinished ones.")
@click.option(
    "--unused-days",
    type=click.FloatRange(0),
    help=f"With --prune: days without use; 0 removes all.  [default: {UNUSED_DAYS:g}]",
)
@version_option
def main(model: Path | None, as_json: bool, prune: bool, unused_days: float | None) -> None:
    """Look at this installation, its devices and, if it is given, at MODEL (an .onnx file).

    Nothing is sent anywhere, and nothing is written but for --prune. Exit code: 0 if all is well for what this machine
    has (none need have a GPU), 1 if something is wrong, 2 for wrong arguments or if this cannot be written.
    """
    if unused_days is not None and not prune:
        raise click.UsageError("--unused-days is for --prune")
    findings = Findings()
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
        click.echo(json.dumps(report, indent=1, default=str))
    else:
        _print(text_of(findings))
    click.get_current_context().exit(0 if ok else 1)


def text_of(findings: Findings) -> Iterator[str]:
    """The report's lines."""
    writers = {"installed": _installed, "gpu": _gpu, "devices": _devices, "threads": _threads}
    for part, found in findings.parts.items():
        yield part.capitalize() if part != "gpu" else "GPU"
        writer = {**writers, "engines": _engines, "model": _model}[part]
        lines = [found["failed"]] if "failed" in found else writer(found)
        yield from (f"  {line}" for line in lines)
        yield ""
    problems = findings.ranked()
    yield "What to do, worst first" if problems else "All is well."
    for number, problem in enumerate(problems, 1):
        yield f"  {number}. {problem.severity}: {problem.what}"
        yield f"     {problem.do}"


def _installed(found: dict[str, Any]) -> Iterator[str]:
    yield found["python"]
    yield ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    if found["onnxruntime"]:
        yield f"ONNX Runtime {found['onnxruntime']} is what is imported"


def _gpu(found: dict[str, Any]) -> Iterator[str]:
    if not found["driver"]:
        yield "no NVIDIA driver" + (f", {found['plugged_in']} GPUs plugged in" if found["plugged_in"] else "")
        return
    yield f"NVIDIA driver {found['driver']}"
    for index, one in enumerate(found["gpus"]):
        memory = f", {_size(one['free_bytes'])} of {_size(one['memory_bytes'])} free" if one["memory_bytes"] else ""
        yield f"{index}: {one['name']}{memory}"


def _devices(found: dict[str, Any]) -> Iterator[str]:
    for device, missing in found.items():
        yield f"{device:9} {missing or 'nothing is missing'}"


def _threads(found: dict[str, Any]) -> Iterator[str]:
    quota = "none" if found["quota"] is None else f"{found['quota']:g} cores"
    yield (
        f"{found['threads']} for a prediction; this process may use {found['allowed']} of {found['machine']} cores, "
        f"quota of its cgroup: {quota}"
    )
    for name, value in found["environment"].items():
        yield f"{name}={value}"


def _engines(found: dict[str, Any]) -> Iterator[str]:
    total = _size(sum(one["bytes"] for one in found["engines"]))
    yield f"{found['folder']}: {len(found['engines'])} engines, {total}" + (
        f", {len(found['removed'])} removed" if found["removed"] else ""
    )
    for one in found["engines"]:
        days = (time.time() - one["used"]) / 86_400
        yield f"{one['key'][:12]} {_size(one['bytes'])}, {one['about'].get('model', '?')}, used {days:.0f} days ago"


def _model(found: dict[str, Any]) -> Iterator[str]:
    card = found["card"]
    height, width = card["size"]
    yield f"{found['path']}, {_size(found['bytes'])}: safe to load, card read"
    yield f"{card['name']}: {', '.join(card['classes'][:8])}; {width}x{height} {card['channels']}, {card['fit']}; " + (
        f"{card['precision']}{', for CPUs' if card['target'] == 'cpu' else ''}, "
        f"widths {','.join(map(str, card['widths']))}"
    )
    if card["metrics"]:
        yield ", ".join(f"{name} {value:.4g}" for name, value in card["metrics"].items())
    for device, one in found["devices"].items():
        if "failed" in one:
            yield f"{device:9} {one['failed']}"
            continue
        nodes, taken = ", ".join(f"{count} on {name}" for name, count in one["nodes"].items()), one["latency"]
        yield f"{device:9} golden sample off by {one['golden_error']:.1e} (limit {one['tolerance']:g}); nodes: {nodes}"
        yield (
            f"{'':9} {taken['median_ms']:.1f} ms an image of {width}x{height} (95 % within {taken['p95_ms']:.1f} ms, "
            f"{taken['runs']} runs, {one['threads']} threads), {1e3 / taken['median_ms']:.0f} images/s"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _print(lines: Iterator[str]) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # closed it is None
    for line in lines:
        shown = "".join(letter if letter.isprintable() else " " for letter in line)  # of a card, say
        click.echo(shown.encode(encoding, "backslashreplace").decode(encoding))
