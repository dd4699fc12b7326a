"""Refusal of a graph that is not good enough to be written; the reason and the figures are kept in a JSON file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import numpy as np

from export.precision.judge import Converted
from export.proof import (
    MAX_ERROR,
    MAX_LOGITS_ERROR,
    NOT_FINITE,
    cases,
    depends_on_batch,
    expected_answers,
    graph_run,
    proof_rows,
)
from runtime.card import ModelCard
from runtime.errors import ProofError
from runtime.model_file.golden import Golden, NetworkFunction
from runtime.support.files import write_text


def require_equal(card: ModelCard, run: NetworkFunction, logits_off: float, file: Path) -> None:
    """Refuse an fp32 graph that does not answer as the network does, by probabilities, batches or logits."""
    assert card.proof is not None
    advice = "; leave out --target cpu" if card.target == "cpu" else ""
    worst = max(card.proof.rows, key=lambda row: row.parity.max_abs_error)
    assert card.proof.tolerance is not None
    if worst.parity.max_abs_error > card.proof.tolerance:
        refuse(
            f"the graph differs from the network: at (batch, height, width) {worst.shape} it is off by "
            f"{worst.parity.max_abs_error:.2g}, expected at most {card.proof.tolerance:.2g}{advice}",
            card,
            file,
        )
    if depends_on_batch(run, card):
        refuse(f"an image's answer depends on the other images in its batch{advice}", card, file)
    limit = MAX_LOGITS_ERROR[card.target]
    if logits_off > limit:  # probabilities near 0 and 1 hide it
        refuse(
            f"the graph differs from the network: its logits are off by {logits_off:.2g} of their range, expected at "
            f"most {limit:g}{advice}",
            card,
            file,
        )


def require_gate(card: ModelCard, converted: Converted, golden: Golden, file: Path, *, force: bool) -> None:
    """Refuse a converted graph that answers NaN, depends on the batch, or (unless it is forced) fails its gate."""
    if not np.isfinite(golden.probability).all():
        refuse("it answers the golden sample with NaN", card, file)
    assert card.proof is not None
    for row in card.proof.rows:
        if row.parity == NOT_FINITE:
            refuse(f"it answers (batch, height, width) {row.shape} with NaN", card, file)
    if depends_on_batch(converted.run, card):
        refuse("an image's answer depends on the other images in its batch", card, file)
    if converted.twin is not None:
        judged = expected_answers(graph_run(converted.twin), cases(card))
        rows = proof_rows(graph_run(converted.model), judged, card.output)
        off = max(row.parity.max_abs_error for row in rows)
        if off > MAX_ERROR:
            refuse(f"the graph is off by {off:.2g} from the one that was judged", card, file)
    if not converted.finite:
        refuse("it answers an image that it was judged on with NaN", card, file)
    if not converted.gate.passed and not force:
        refuse(f"{card.precision} loses too much: {converted.refusal()}; --force writes it all the same", card, file)


def refuse(reason: str, card: ModelCard, file: Path) -> NoReturn:
    """Keep the reason and the figures in `refusal_path`, and raise a ProofError."""
    found = {"reason": reason, "card": asdict(card)}
    write_text(refusal_path(file), json.dumps(found, indent=2, sort_keys=True) + "\n")
    raise ProofError(f"{file}: not written, {reason}", card)


def refusal_path(file: Path) -> Path:
    """Path of the JSON that keeps the reason, and the card with its proof, of an export that was refused."""
    return file.with_suffix(".refused.json")
