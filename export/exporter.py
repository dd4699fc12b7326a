"""The whole export: load, build, convert, prove, embed, write, and open once as an application will."""

import json
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn, get_args

import numpy as np
import onnx

from export.graph import OPSET, build_graph, build_raw_graph, check_opset, check_room, check_size, set_metadata
from export.options import CardChanges
from export.precision.gate import Converted, fp16, int8
from export.precision.int8 import Values
from export.proof import (
    MAX_ERROR,
    MAX_LOGITS_ERROR,
    NOT_FINITE,
    Answered,
    answered,
    cases,
    compare,
    depends_on_batch,
    graph_run,
    logits_error,
    logits_run,
    make_golden,
    network_run,
    raw_run,
    versions,
)
from export.samples import Picture, Samples, load_pictures, load_samples, synthetic_samples
from export.winograd.autotune import Choice, tuned
from export.winograd.cost_model import chosen
from export.winograd.transform import convolutions
from runtime.card import CARD_KEY, RAW_KEY, Gate, ModelCard, Precision, Proof, Target
from runtime.devices.registry import PROVIDER
from runtime.errors import CheckpointError, ConfigError, ModelError, OutputError, ProofError
from runtime.model_file.golden import GOLDEN_KEY, Golden, NetworkFunction
from runtime.predictor import Predictor
from runtime.result import mask_of
from runtime.support.files import prepare, replacing, write_text
from unet_core.checkpoint import load_checkpoint
from unet_core.data.pairs import Layout
from unet_core.model import Segmenter
from unet_core.reporting.progress import Display

PROOF_PICTURES = 8
"""Real pictures that the proof is on."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written: its path, its card with the proof, its size in bytes, and the seconds it took.

    `card_is_assumed`: the checkpoint had no card, so its size, normalisation and names are the defaults. `family` is
    the project that it is from, `notes` what a user has to know, a line each.
    """

    path: Path
    card: ModelCard
    size: int
    seconds: float
    card_is_assumed: bool
    family: str
    notes: tuple[str, ...]


def export_onnx(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    precision: Precision = "fp32",
    target: Target = "any",
    tune: bool = False,
    data: str | os.PathLike[str] | None = None,
    layout: Layout | None = None,
    ignore_index: int | None = None,
    raw: bool = False,
    opset: int = OPSET,
    changes: CardChanges | None = None,
    keep: Collection[str] = (),
    values: Values | None = None,
    force: bool = False,
    display: Display | None = None,
) -> ExportReport:
    """Write a checkpoint as one ONNX file with card, proof and golden sample.

    Args:
        checkpoint: of this library or of a project in `unet_core.foreign`; .pth, .pth.tar or .safetensors.
        path: the .onnx file; by default beside the checkpoint, with what is special about it in its name.
        precision: "fp32", or "fp16" or "int8", which must pass a gate on `data`.
        target: "cpu" rewrites the network for CPUs, see `export.winograd.transform`; fp32 only.
        tune: choose how each of its layers is computed by measuring on this machine, not by the model of costs.
        data: folder of real images, see `load_samples`; int8 is calibrated on it.
        layout, ignore_index: of the masks in `data`, as in training.
        raw: write the bare network (float32 NCHW -> logits), which `Predictor` does not take; fp32 only.
        opset: of ONNX, within `export.graph.OPSETS`.
        changes: what a checkpoint without a card does not tell.
        keep: layers that stay in fp32 whatever they cost.
        values: of int8: "s8" (the default) for TensorRT, "u8" for CPUs.
        force: write an fp16 or int8 file also where it fails its gate; the card says so.
        display: where progress and notes are shown; by default nowhere.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or PyTorch itself does not answer with numbers.
        ConfigError: options that contradict each other or the checkpoint's card.
        DataError: the images cannot be used.
        ModelError: the weights are too large for one file.
        ProofError: the graph does not answer as PyTorch does, or fails its gate; nothing is written but what was
            found, in `refusal_path`.
        OutputError: the file cannot be written; an older one stays as it was.
    """
    started = time.perf_counter()
    display = display or Display(quiet=True)
    check_options(precision, target, data, raw=raw, keep=keep, values=values, force=force, tune=tune)
    check_opset(opset)
    loaded = load_checkpoint(checkpoint)
    check_size(loaded.state_dict)
    card = (changes or CardChanges()).applied(loaded.card, assumed=loaded.card_is_assumed)
    if loaded.card_is_assumed:
        display.note(_assumed(checkpoint, loaded.family, card, changes or CardChanges()))
    place = _target(path, Path(checkpoint), kind_of(precision, values, target, raw=raw))
    samples = None if precision == "fp32" else _samples(data, card, layout, ignore_index, display)
    segmenter = Segmenter(loaded.network(), card).eval()
    golden = make_golden(segmenter, card)
    pictures = _pictures(data, card, samples, display)
    expected = list(answered(network_run(segmenter), cases(card, pictures)))
    _require_finite(expected, checkpoint)
    model = build_raw_graph(segmenter, card, opset) if raw else build_graph(segmenter, card, opset)
    if target == "cpu":
        card = replace(card, target=target)
        model = _for_cpus(model, card, display, tune=tune)
    run = raw_run(model, card) if raw else graph_run(model)
    card = _proved(card, run, expected, golden)
    _require_parity(card, run, place)
    logits = raw_run(model, card, logits=True) if raw else logits_run(model)
    off = logits_error(logits, network_run(segmenter, logits=True), card, pictures)
    _require_logits(off, card, place)
    if target == "cpu":
        display.note(f"--target cpu: logits are off by {off:.1e} of their range (limit {MAX_LOGITS_ERROR[target]:g})")
    converted = None
    if samples is not None:
        card = replace(card, precision=precision, proof=None)
        converted = _converted(model, run, card, samples, keep, values, display)
        model, golden = converted.model, Golden(image=golden.image, probability=converted.run(golden.image[None])[0])
        card = _proved(card, converted.run, expected, golden, converted.gate, graph_run(model, optimised=False))
        _require_gate(card, converted, golden, place, force=force)
    _write(model, card, golden, place, raw=raw)
    return ExportReport(
        path=place,
        card=card,
        size=place.stat().st_size,
        seconds=time.perf_counter() - started,
        card_is_assumed=loaded.card_is_assumed,
        family=loaded.family,
        notes=(*loaded.notes, *_blind(expected, card), *(() if converted is None else converted.notes)),
    )


def _for_cpus(model: onnx.ModelProto, card: ModelCard, display: Display, *, tune: bool) -> onnx.ModelProto:
    """The graph, rewritten where that gains."""
    choice = tuned(model, card, display) if tune else Choice(forms=chosen(model, card))
    if choice.forms:
        display.note(
            f"--target cpu: {len(choice.forms)} of {len(convolutions(model))} convolutions of 3x3 are computed by "
            "Winograd's filtering"
        )
    else:
        display.note(
            "--target cpu: no layer is rewritten, since this network would not gain by it; the graph is as without it, "
            "but GPUs refuse the file, so take the one without --target cpu"
        )
    made = choice.applied(model)
    check_room(made)
    return made


def _assumed(checkpoint: str | os.PathLike[str], family: str, card: ModelCard, changes: CardChanges) -> str:
    """What was not given of a card that the checkpoint does not have."""
    height, width = card.input.size
    values = {
        "size": f"trained at {width}x{height}",
        "mean": f"mean {_joined(card.input.mean)} of values in 0..1",
        "std": f"std {_joined(card.input.std)}",
        "fit": f"fit {card.input.fit}",
        "classes": f"classes {', '.join(card.output.classes)}",
    }
    left = [name for name in values if getattr(changes, name) is None]
    assumed = f"; assumed: {', '.join(values[name] for name in left)} (--{', --'.join(left)})" if left else ""
    return f"{os.fspath(checkpoint)} is {family}'s and has no card{assumed}"


def _joined(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def check_options(
    precision: Precision = "fp32",
    target: Target = "any",
    data: str | os.PathLike[str] | None = None,
    *,
    raw: bool = False,
    keep: Collection[str] = (),
    values: Values | None = None,
    force: bool = False,
    tune: bool = False,
) -> None:
    """Refuse options of `export_onnx` that contradict each other.

    Raises:
        ConfigError: which they are.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"--precision {precision}: expected {', '.join(get_args(Precision))}")
    if raw and precision != "fp32":
        raise ConfigError(f"--raw: is fp32; leave out --precision {precision}")
    if keep and precision == "fp32":
        raise ConfigError("--keep: an fp32 file keeps all layers; give --precision fp16 or int8")
    if force and precision == "fp32":
        raise ConfigError("--force: an fp32 file that is not the network is never written; leave it out")
    if values is not None and values not in get_args(Values):
        raise ConfigError(f"--values {values}: expected {' or '.join(get_args(Values))}")
    if values is not None and precision != "int8":
        raise ConfigError(f"--values {values}: is of int8; give --precision int8, or leave it out")
    if precision == "int8" and data is None:
        raise ConfigError("--precision int8: is calibrated on real images; give --data FOLDER")
    _check_target(target, precision, raw=raw, tune=tune)


def _check_target(target: Target, precision: Precision, *, raw: bool, tune: bool) -> None:
    if target not in get_args(Target):
        raise ConfigError(f"--target {target}: expected {' or '.join(get_args(Target))}")
    if target == "cpu" and (raw or precision != "fp32"):
        raise ConfigError(
            f"--target cpu: writes fp32 with a card; leave out {'--raw' if raw else f'--precision {precision}'}"
        )
    if tune and target != "cpu":
        raise ConfigError("--tune: chooses for --target cpu; add that, or leave --tune out")


def _target(path: str | os.PathLike[str] | None, checkpoint: Path, kind: str) -> Path:
    target = prepare(default_path(checkpoint, kind) if path is None else path)
    if target.suffix.lower() != ".onnx":
        raise OutputError(f"{target}: expected a name that ends in .onnx, by which the other commands know it")
    return target


def kind_of(precision: Precision, values: Values | None, target: Target, *, raw: bool = False) -> str:
    """What is special about a file, for its name."""
    return "raw" if raw else "u8" if values == "u8" else "cpu" if target == "cpu" else precision


def default_path(checkpoint: Path, kind: str = "fp32") -> Path:
    """Beside the checkpoint: model.onnx, or model.KIND.onnx with fp16, int8, u8, cpu or raw."""
    stem = checkpoint.with_name(checkpoint.name.removesuffix(".tar")).with_suffix("").name
    return checkpoint.with_name(f"{stem}.onnx" if kind == "fp32" else f"{stem}.{kind}.onnx")


def refusal_path(target: Path) -> Path:
    """Where the reason and the card, with its proof, of an export that was refused are kept."""
    return target.with_suffix(".refused.json")


def _samples(
    data: str | os.PathLike[str] | None,
    card: ModelCard,
    layout: Layout | None,
    ignore_index: int | None,
    display: Display,
) -> Samples:
    if data is None:
        return synthetic_samples(card)
    return load_samples(data, card, layout=layout, ignore_index=ignore_index, display=display)


def _pictures(
    data: str | os.PathLike[str] | None, card: ModelCard, samples: Samples | None, display: Display
) -> list[Picture]:
    """Real pictures for the proof."""
    if data is None:
        return []
    return samples.pictures(PROOF_PICTURES) if samples else load_pictures(data, card, PROOF_PICTURES, display=display)


def _converted(
    model: onnx.ModelProto,
    exact: NetworkFunction,
    card: ModelCard,
    samples: Samples,
    keep: Collection[str],
    values: Values | None,
    display: Display,
) -> Converted:
    if card.precision == "fp16":
        return fp16(model, exact, card, samples, keep, display)
    return int8(model, exact, card, samples, keep, values or "s8", display)


def _proved(
    card: ModelCard,
    run: NetworkFunction,
    expected: Sequence[Answered],
    golden: Golden,
    gate: Gate | None = None,
    again: NetworkFunction | None = None,
) -> ModelCard:
    """The card with the proof of a run; the golden sample is replayed on `again`, which computes the file otherwise."""
    rounding = " rounding to fp16" if card.precision == "fp16" else ""
    proof = Proof(
        provider=f"{PROVIDER['cpu']}{rounding}",
        versions=versions(),
        tolerance=MAX_ERROR if gate is None else None,
        rows=tuple(compare(run, expected, card.output)),
        golden_error=min(golden.error(again or run), 1.0),
        gate=gate,
    )
    return replace(card, proof=proof)


def _require_finite(expected: Sequence[Answered], checkpoint: str | os.PathLike[str]) -> None:
    """Stop a network that has nothing to compare with."""
    for case, probability in expected:
        if not np.isfinite(probability).all():
            raise CheckpointError(
                f"{os.fspath(checkpoint)}: PyTorch answers NaN to a batch of {list(case.images.shape)}, so its weights "
                "are too large; train the network again, or give other --mean and --std"
            )


def _require_parity(card: ModelCard, run: NetworkFunction, target: Path) -> None:
    """Stop an fp32 graph that is not the network."""
    assert card.proof is not None
    bad = max(card.proof.rows, key=lambda row: row.parity.max_abs_error)
    if bad.parity.max_abs_error > MAX_ERROR:
        _refuse(
            f"the graph is not the network: at (batch, height, width) {bad.shape} it is off by "
            f"{bad.parity.max_abs_error:.2g}, expected at most {MAX_ERROR:g}{_instead(card)}",
            card,
            target,
        )
    if depends_on_batch(run, card):
        _refuse(f"an image's answer depends on the other images in its batch{_instead(card)}", card, target)


def _instead(card: ModelCard) -> str:
    """What may be written where this file is refused."""
    return "; leave out --target cpu" if card.target == "cpu" else ""


def _require_gate(card: ModelCard, converted: Converted, golden: Golden, target: Path, *, force: bool) -> None:
    """Stop a conversion that fails its gate, unless it is forced."""
    if not np.isfinite(golden.probability).all():
        _refuse("it answers the golden sample with NaN", card, target)
    assert card.proof is not None
    wild = [row.shape for row in card.proof.rows if row.parity == NOT_FINITE]
    if wild:
        _refuse(f"it answers (batch, height, width) {wild[0]} with NaN", card, target)
    if depends_on_batch(converted.run, card):
        _refuse("an image's answer depends on the other images in its batch", card, target)
    if converted.twin is not None:
        _require_twin(graph_run(converted.model), graph_run(converted.twin), card, target)
    if not converted.gate.passed and not force:
        _refuse(f"{card.precision} hurts: {converted.refusal()}; --force writes it all the same", card, target)


def _require_twin(run: NetworkFunction, twin: NetworkFunction, card: ModelCard, target: Path) -> None:
    """Stop where what was judged is not what would be written."""
    rows = compare(run, answered(twin, cases(card)), card.output)
    off = max(row.parity.max_abs_error for row in rows)
    if off > MAX_ERROR:
        _refuse(f"the graph is off by {off:.2g} from the one that was judged", card, target)


def _require_logits(error: float, card: ModelCard, target: Path) -> None:
    """Stop an fp32 graph that is not the network, though probabilities near 0 or 1 do not show it."""
    limit = MAX_LOGITS_ERROR[card.target]
    if error > limit:
        _refuse(
            f"the graph is not the network: its logits are off by {error:.2g} of their range, expected at most "
            f"{limit:g}{_instead(card)}",
            card,
            target,
        )


def _blind(expected: Sequence[Answered], card: ModelCard) -> tuple[str, ...]:
    """A note where no mask of the proof has two classes, so that none could have shown a difference."""
    masks = [mask_of(one, card.output) for _, batch in expected for one in batch]
    if len(np.unique(np.concatenate([mask.reshape(-1) for mask in masks]))) > 1:
        return ()
    return (
        "the network answers one class everywhere on the pictures of the proof, so their masks prove little; "
        "give --data with images of what it was trained for",
    )


def _refuse(reason: str, card: ModelCard, target: Path) -> NoReturn:
    """Stop, and keep what was found."""
    found = {"reason": reason, "card": asdict(card)}
    write_text(refusal_path(target), json.dumps(found, indent=2, sort_keys=True) + "\n")
    raise ProofError(f"{target}: not written, {reason}", card)


def _require_usable(file: Path, target: Path) -> None:
    """Stop a file that an application could not use."""
    try:
        Predictor(file, device="cpu")
    except ModelError as error:
        raise ModelError(str(error).replace(str(file), str(target))) from error


def _write(model: onnx.ModelProto, card: ModelCard, golden: Golden, target: Path, *, raw: bool) -> None:
    if raw:
        set_metadata(model, {RAW_KEY: card.to_json()})
    else:
        set_metadata(model, {CARD_KEY: card.to_json(), GOLDEN_KEY: golden.to_json()})
    with replacing(target) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        if not raw:
            _require_usable(temporary, target)
    refusal_path(target).unlink(missing_ok=True)
