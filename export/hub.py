"""A model card for a model hub: Markdown beside an exported file."""

import os
from pathlib import Path

from export.publish.model_card import model_card
from runtime.model_file.digest import check_digest
from runtime.model_file.reader import read_model
from runtime.support.files import write_text


def write_model_card(model: str | os.PathLike[str]) -> Path:
    """Write the Markdown beside an exported file, model.md beside model.onnx, and return its path.

    An older Markdown file of that name is replaced.

    Raises:
        ModelError: the model is damaged, changed since its export, or a raw export.
        OutputError: the Markdown cannot be written.
    """
    file = Path(model)
    card, _ = read_model(file)
    check_digest(file)
    target = markdown_path(file)
    write_text(target, model_card(card, file))
    return target


def markdown_path(model: str | os.PathLike[str]) -> Path:
    """Return the path of the Markdown that belongs to an exported file."""
    return Path(model).with_suffix(".md")
