"""The report of an export on the terminal: parity figures in columns, and the verdict."""

from runtime.card import ModelCard, ProofRow
from runtime.support.sizes import batch_text


def verdict_line(card: ModelCard, source: str) -> str:
    """Say in one line how close the file is to PyTorch, or what its precision lost.

    `source` continues "this library's reading of": the file, and the project as whose network it was read.
    """
    assert card.proof is not None
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


def parity_table(rows: tuple[ProofRow, ...]) -> str:
    """Lay out the parity figures of each checked shape in columns."""
    lines = ["batch of width x height   images      max error   pixels flipped   mask IoU   flip distance"]
    for row in rows:
        shape, figures = batch_text(row.shape), row.parity
        lines.append(
            f"{shape:<25} {row.images:<10} {figures.max_abs_error:10.1e}   {figures.flipped:14.4%}   "
            f"{figures.iou:8.6f}   {figures.flip_distance:13.1e}"
        )
    return "\n".join(lines)
