"""A model repository for NVIDIA Triton Inference Server: the ONNX file, its configuration, and data to warm it up."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from export.publish.triton_config import WARMUP, config_text
from runtime.card import CARD_KEY, ModelCard
from runtime.errors import ConfigError, ModelError, OutputError
from runtime.model_file.digest import check_digest
from runtime.model_file.metadata import read_metadata
from runtime.model_file.reader import read_model
from runtime.support.files import make_folder, replacing, write_bytes, write_text
from runtime.support.locks import try_lock
from runtime.support.sizes import batch_text

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Valid names of models: they become folders and parts of addresses."""

MAX_BATCH = 8
"""Largest batch, in images, that the server may form unless another one is asked for."""

BATCH_LIMIT = 1_024
"""Largest batch, in images, that can be asked for."""

CONFIG, MODEL = "config.pbtxt", "1/model.onnx"
"""Files of a model's folder, besides `WARMUP`."""

REPLACED = ".replaced"
"""Folder in a model's folder that holds its previous content until that is deleted.

Triton ignores folders there whose names are not numbers, but takes any folder beside the models for a model.
"""


def write_repository(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    max_batch: int | None = None,
) -> Path:
    """Write FOLDER/NAME for Triton and return its path; the same model that is already there is replaced.

    Args:
        model: an ONNX file that `unet-export` wrote.
        folder: the repository, which may hold other models.
        name: name of the model in the repository; by default `valid_name` of the card's name.
        max_batch: largest batch that the server may form, 1 to `BATCH_LIMIT` images; by default `MAX_BATCH`. A file of
            one shape has batches of its own.

    Raises:
        ModelError: the file is damaged, changed since its export, or a raw export.
        ConfigError: the name or the batch is invalid.
        OutputError: FOLDER/NAME is another model, holds other files, or cannot be written. It stays as it was.
    """
    source = Path(model)
    card, golden = read_model(source)
    check_digest(source)
    fixed = card.input.fixed_batch
    if max_batch is not None and fixed is not None:
        raise ConfigError(
            f"largest batch on Triton: found {max_batch!r}, the file takes batches of {fixed} only; leave it out"
        )
    largest = MAX_BATCH if max_batch is None else max_batch
    if type(largest) is not int or not 1 <= largest <= BATCH_LIMIT:
        raise ConfigError(f"largest batch on Triton: found {max_batch!r}, expected 1 to {BATCH_LIMIT}")
    largest = largest if fixed is None else 0
    target = model_folder(card, folder, name)
    make_folder(folder)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    for path in target.parent.glob(f".{target.name}.{'[0-9a-f]' * 8}"):
        with _held(path) as is_killed_ones:
            if is_killed_ones and not (path / REPLACED).exists():
                shutil.rmtree(path, ignore_errors=True)
    make_folder(temporary)
    with _held(temporary):
        try:
            with replacing(temporary / MODEL) as part:
                shutil.copyfile(source, part)
            write_bytes(temporary / WARMUP, (fixed or 1) * golden.shown(card.input.fixed_size).tobytes())
            write_text(temporary / CONFIG, config_text(source, card, golden, target.name, largest))
            _move_into_place(temporary, target)
        finally:
            if not (temporary / REPLACED).exists():  # there it holds what could not be put back
                shutil.rmtree(temporary, ignore_errors=True)
    return target


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock a folder; yields False if another process holds it, or where folders cannot be locked."""
    descriptor, is_held = None, False
    with suppress(OSError):
        descriptor = os.open(folder, getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0))
        is_held = try_lock(descriptor)
    try:
        yield is_held
    finally:
        if descriptor is not None:
            os.close(descriptor)


def model_folder(card: ModelCard, folder: str | os.PathLike[str], name: str | None = None) -> Path:
    """Return FOLDER/NAME for a file with this card, and refuse it if `write_repository` could not write there.

    Raises:
        ConfigError, OutputError: as `write_repository`.
    """
    name = valid_name(card.name) if name is None else name
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"name of the model on Triton: found {name!r}, expected letters, digits, '.', '_' and '-', a letter or "
            "digit first; give another one"
        )
    repository = Path(folder)
    if repository.is_dir() and not os.access(repository, os.W_OK):
        raise OutputError(f"{repository}: cannot be written (permission denied); choose another place")
    _require_replaceable(repository / name, card)
    return repository / name


def valid_name(name: str) -> str:
    """Return a name that Triton takes: the same, or with "_" for what Triton refuses."""
    if NAME.fullmatch(name):
        return name
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._-")[:100] or "model"


def _require_replaceable(target: Path, card: ModelCard) -> None:
    """Refuse to replace anything but the same model, as this module wrote it."""
    if not os.path.lexists(target):
        return
    advice = "remove it, or give another name (--triton-name)"
    if target.is_symlink() or not target.is_dir():
        raise OutputError(f"{target}: is a file or a link, expected a folder or nothing; {advice}")
    files = {path.relative_to(target) for path in target.rglob("*") if not path.is_dir()}
    found = {path.as_posix() for path in files if path.parts[0] != REPLACED}
    strange = sorted(found - {CONFIG, MODEL, WARMUP})
    if strange:
        raise OutputError(f"{target}: holds {strange[0]}, which unet-export does not write; {advice}")
    if not found:
        return
    try:
        there = ModelCard.from_json(read_metadata(target / MODEL).get(CARD_KEY, ""))
    except ModelError as error:
        raise OutputError(f"{target}: holds no model that unet-export wrote; {advice}") from error
    kinds = [
        one.precision
        + (" for CPUs" if one.target == "cpu" else "")
        + (f" for batches of {batch_text(one.input.fixed_shape)}" if one.input.fixed_shape else "")
        for one in (there, card)
    ]
    if kinds[0] != kinds[1] or there.weights_sha256 != card.weights_sha256:
        raise OutputError(
            f"{target}: is another model, {kinds[0]} with weights {there.weights_sha256[:12]}, expected "
            f"{kinds[1]} with {card.weights_sha256[:12]}; {advice}"
        )


def _move_into_place(temporary: Path, target: Path) -> None:
    """Rename a whole folder to its place. If that fails or is interrupted, put back the folder that was there."""
    old = temporary / REPLACED
    try:
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    except BaseException as error:
        try:
            if old.exists():
                old.rename(target)
        except OSError as worse:
            reason = (worse.strerror or str(worse)).lower()
            raise OutputError(f"{target}: cannot be put back ({reason}); move it there from {old}") from worse
        if not isinstance(error, OSError):
            raise
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"{target}: cannot be written ({reason}); choose another place") from error
    shutil.rmtree(target / REPLACED, ignore_errors=True)
