"""The reports of an export and of a check on the terminal: figures in columns, and the verdict."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.card import Gate, ModelCard, ProofRow
from runtime.support.sizes import batch_text

if TYPE_CHECKING:
    from export.verify import CheckReport


def verdict_line(card: ModelCard, source: str) -> str:
    """Say in one line how close the file is to PyTorch, or what its precision lost.

    `source` continues "this library's reading of": the file, and the project as whose network it was read.
    """
    assert card.proof is not None
    if card.allows_bf16 and card.bf16 is not None:
        from export.precision.gate import describe_loss

        without = verdict_line(replace(card, bf16=None), source)
        return f"{without}; CPUs with bf16 may compute it in bf16, where it {describe_loss(card, card.bf16.gate)}"
    gate = card.proof.gate
    if gate is None:
        reference = {
            "module": "PyTorch",
            "pairs": "its author's outputs",
            "reading": f"this library's reading of {source}",
        }[card.proof.reference]
        return f"equals {reference} within {card.proof.max_abs_error:.1e} (limit {card.proof.tolerance:g})"
    from export.precision.gate import describe_limit, describe_loss, exceeds_limit

    text = f"{card.precision}, {describe_loss(card, gate)}"
    if card.precision == "fp16" and gate.kept and gate.passed:
        text += f", with {', '.join(gate.kept)} in fp32"
    if gate.passed:
        return text
    limit = describe_limit(card, gate)
    if exceeds_limit(card, gate):
        return f"{text}, WHICH IS TOO MUCH: it was forced; {limit}"
    return f"{text}; it was forced{f', since {limit}' if limit else ''}"


def check_line(report: "CheckReport") -> str:
    """Say in one line what a check that passed found, with the limits."""
    found = []
    if report.rows:
        found.append(nearness(report))
    if report.golden_error is not None and report.golden_limit is not None:
        found.append(f"golden sample off by {report.golden_error:.1e} (limit {report.golden_limit:.2g})")
    found.append(f"digest {report.integrity}")
    gate = report.card.proof.gate if report.card.proof else None
    if gate is not None and gate.passed and report.of_network:
        from export.precision.gate import describe_loss

        found.append(f"and at its export it passed its gate: it {describe_loss(report.card, gate)}")
    if gate is not None and not gate.passed:
        found.append("but it failed its gate when it was exported (--force)")
    layers = f", layers in {report.arithmetic}" if report.arithmetic else ""
    return f"{report.path}: {', '.join(found)}, on {report.device}{layers}"


def nearness(report: "CheckReport") -> str:
    """Say how near a checked file is to its reference. One of lower precision may be far off on synthetic pictures."""
    row, limit = max(zip(report.rows, report.limits, strict=True), key=lambda pair: pair[0].parity.max_abs_error)
    off = f"{report.max_abs_error:.1e}"
    if report.card.precision == "fp32" and "bf16" not in report.arithmetic:
        return f"equals {report.reference} within {off} (limit {limit:.2g})"
    if not report.of_network:
        return f"is off by at most {off} from {report.reference} (limit {limit:.2g})"
    pictures = "synthetic pictures" if row.images == "synthetic" else "pictures in --data"
    return (
        f"is as near to {report.reference} as when it was exported: off by at most {off} on {pictures} (limit "
        f"{limit:.2g})"
    )


def proof_table(card: ModelCard) -> str:
    """Lay out what an export is judged by: parity with the network, or below fp32 the figures of its gate; bf16's."""
    assert card.proof is not None
    gate = card.proof.gate
    text = parity_table(card.proof.rows) if gate is None else gate_table(card, gate)
    if card.bf16 is None:
        return text
    return f"{text}\n\n{gate_table(card, card.bf16.gate, card.bf16.max_flipped, 'in bf16, ')}"


def gate_table(card: ModelCard, gate: Gate, limit: float | None = None, where: str = "") -> str:
    """Lay out the figures of a gate; `limit` is as of `judged_figures`, and the title begins with `where`."""
    from export.precision.gate import judged_figures

    source = "real" if gate.images == "data" else "synthetic"
    images = f"{where}judged on {gate.count} {source} image{'s' * (gate.count > 1)}"
    lines = [f"{images:<36}{'found':>20}   {'limit':<18}verdict"]
    for one in judged_figures(card, gate, limit):
        verdict = ("PASS" if one.passed else "FAILED") if one.limit else ""
        lines.append(f"{one.name:<36}{one.found:>20}   {one.limit or 'not judged':<18}{verdict}".rstrip())
    return "\n".join(lines)


def parity_table(rows: Sequence[ProofRow], limits: Sequence[float] = (), faults: Sequence[str] = ()) -> str:
    """Lay out the parity figures of each checked shape in columns; with limits also these, and the verdict."""
    lines = ["batch of width x height   images      max error   pixels flipped   mask IoU   flip distance"]
    lines[0] += "   limit     verdict" * bool(limits)
    for index, row in enumerate(rows):
        shape, figures = batch_text(row.shape), row.parity
        line = (
            f"{shape:<25} {row.images:<10} {figures.max_abs_error:10.1e}   {figures.flipped:14.4%}   "
            f"{figures.iou:8.6f}   {figures.flip_distance:13.1e}"
        )
        if limits:
            line += f"   {limits[index]:<8.2g}  {'FAILED' if faults[index] else 'PASS'}"
        lines.append(line)
    return "\n".join(lines)
