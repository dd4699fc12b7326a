"""A whole export: convert a checkpoint to ONNX, prove that it answers the same, write it, and open it once.

`export_onnx` is what `unet-export` and Python programs call; `export_loaded` is the same for a checkpoint in memory.
"""

import copy
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx.helper import set_model_props
from torch import nn

from export.cuda_kernels import note_on_cuda
from export.golden_choice import CANDIDATES
from export.graph import build_graph, build_raw_graph, check_room, check_size, fold_sizes
from export.notes import int8_note, low_dice, notes_on_size
from export.options import OPSET, VALUES_FOR, Allowed, ExportOptions, Int8For, Values, fixed_size_text, with_fixed_size
from export.pairs import load_with_pairs
from export.precision.bf16 import judge_bf16, require_bf16
from export.precision.fp16 import convert_to_fp16
from export.precision.gate import bf16_refusal, least_dice, notes_on_images
from export.precision.int8 import convert_to_int8
from export.precision.judge import image_dices
from export.proof import (
    MAX_LOGITS_ERROR,
    PROOF_PICTURES,
    ExpectedAnswer,
    add_proof,
    allowed_error,
    answers_in,
    cases,
    expected_answers,
    graph_run,
    logits_error,
    logits_run,
    make_golden,
    network_run,
    raw_run,
)
from export.refusal import refusal_path, refuse, require_equal, require_gate
from export.samples import FittedImage, Samples, load_samples, synthetic_samples
from export.winograd.autotune import Choice, tuned
from export.winograd.cost_model import choose_forms
from export.winograd.transform import rewritable
from runtime.card import CARD_KEY, RAW_KEY, FixedShape, ModelCard, Precision, Target, UNetConfig
from runtime.errors import CheckpointError, ConfigError, ModelError, OutputError, ProofError, one_line
from runtime.image import LIMITS, Limits
from runtime.model_file.digest import PRODUCER, seal
from runtime.model_file.golden import GOLDEN_KEY, Golden
from runtime.predictor import Predictor
from runtime.result import mask_of
from runtime.support.files import prepare_target, remove_leftovers_of, replacing
from unet_core.checkpoint import Checkpoint, version
from unet_core.data.pairs import Layout
from unet_core.model import Segmenter
from unet_core.model_options import CardChanges, NetworkOptions
from unet_core.networks.checkpoint import checkpoint_of, open_checkpoint
from unet_core.reporting.progress import Display


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The file that was written: its path, its card with the proof, and its size in bytes.

    `image_dice` is that of the fp32 graph on the masks of real images, if they were given. `seconds` is the time that
    the export took after the checkpoint was loaded. With `card_is_assumed` the checkpoint had no card, so size,
    normalisation and names are defaults. `family` names the project that the checkpoint is from, or the class of an
    author's network. `notes` are lines that a user should read.
    """

    path: Path
    card: ModelCard
    size: int
    image_dice: float | None
    seconds: float
    card_is_assumed: bool
    family: str
    notes: tuple[str, ...]


def export_onnx(
    checkpoint: str | os.PathLike[str] | nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    network: NetworkOptions | None = None,
    pairs: str | os.PathLike[str] | None = None,
    card: ModelCard | None = None,
    precision: Precision = "fp32",
    target: Target = "any",
    tune: bool = False,
    data: str | os.PathLike[str] | None = None,
    layout: Layout | None = None,
    ignore_index: int | None = None,
    skip_bad: bool = False,
    raw: bool = False,
    opset: int = OPSET,
    fixed_size: FixedShape | None = None,
    changes: CardChanges | None = None,
    keep: Collection[str] = (),
    int8_for: Int8For | None = None,
    values: Values | None = None,
    force: bool = False,
    allow: Allowed | None = None,
    max_flipped: float | None = None,
    limits: Limits = LIMITS,
    display: Display | None = None,
) -> ExportReport:
    """Write a checkpoint or a network as one ONNX file with card, proof and golden sample.

    Args:
        checkpoint: file of this library or of a project in `unet_core.foreign`: .pth, .pth.tar or .safetensors; or any
            network with its weights, which maps float32 [n, channels, h, w] to [n, classes, h, w].
        path: the .onnx file to write; by default beside the checkpoint, with what is special about it in its name.
        network: how the checkpoint's network is made by its author's code, which is run, and which of its weights are
            taken; for a network, its ends.
        pairs: file of inputs and outputs of the author's program, which tell how a checkpoint without a network is
            read; see `export.pairs.read_pairs`.
        card: for a network, all that running it does not show; architecture and hash are filled in. By default it is
            assumed, see `changes`.
        precision: "fp32", or "fp16" or "int8", which have to pass a gate on `data`.
        target: "cpu" rewrites the network for CPUs, see `export.winograd.transform`; fp32 only.
        tune: with target "cpu", choose how each layer is computed by measuring on this machine.
        data: folder of real images, see `load_samples`; int8 is calibrated on it.
        layout, ignore_index: how the masks in `data` are read, as in training.
        skip_bad: leave out images and masks in `data` that cannot be used.
        raw: write the bare network (float32 NCHW -> logits), which `Predictor` refuses; fp32 only.
        opset: ONNX opset, within `export.options.OPSETS`.
        fixed_size: (batch, height, width) of the only batches that the file takes, without any arithmetic on sizes in
            its graph; for programs that import no other files, and for networks that cannot be traced otherwise.
        changes: values that a checkpoint without a card does not hold.
        keep: layers that stay in fp32, with fp16 and int8.
        int8_for: with int8, where the file will run: "cpu" or "tensorrt"; by default TensorRT where that runs on this
            machine, else a CPU.
        values: with int8, the same by the type of values between layers: "u8" for CPUs, "s8" for TensorRT.
        force: write an fp16 or int8 file that fails its gate; its card says so.
        allow: "bf16" judges the file's answers in bf16 on `data`, and permits devices to compute it so; other files are
            never computed in it.
        max_flipped: with `allow`, largest share (0..1) of pixels whose class may change against fp32; by default
            0.0001, or the limits of an int8 file.
        limits: the largest images and masks in `data` that are decoded.
        display: receives progress and notes; nothing is shown by default.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or PyTorch answers NaN with it.
        ConfigError: options contradict one another or the checkpoint's card.
        DataError: the images cannot be used.
        ModelError: the weights are too large for one file.
        ProofError: no reading fits the pairs; or the graph differs from PyTorch or fails its gate, and then the reason
            and the figures are written to `refusal_path`.
        DeviceError: `allow`, and this machine cannot compute in bf16.
        OutputError: the file cannot be written; an older one stays as it was.
    """
    options = ExportOptions(
        precision=precision,
        target=target,
        tune=tune,
        data=data,
        layout=layout,
        ignore_index=ignore_index,
        skip_bad=skip_bad,
        raw=raw,
        opset=opset,
        fixed_size=fixed_size,
        changes=changes or CardChanges(),
        keep=keep,
        int8_for=int8_for,
        values=values,
        force=force,
        allow=allow,
        max_flipped=max_flipped,
        limits=limits,
    )
    if pairs is not None and (isinstance(checkpoint, nn.Module) or (network is not None and network.source)):
        raise ConfigError("pairs: tell how weights without a network are read; leave them out where there is one")
    if isinstance(checkpoint, nn.Module):
        if path is None:
            raise ConfigError("path: a network is no file to write beside; give the .onnx file to write")
        ends = options.ends(network or NetworkOptions())
        try:
            own = copy.deepcopy(checkpoint).cpu().eval()  # the caller's network stays where and as it is
        except RuntimeError as error:
            raise ConfigError(
                f"network: PyTorch cannot copy it ({one_line(str(error))[:200]}); if it has weight norm or spectral "
                "norm of torch.nn.utils, remove that (remove_weight_norm), or use torch.nn.utils.parametrizations"
            ) from error
        author = checkpoint_of(own, Path(path).stem, ends, options.changes, card=card)
        return export_loaded(author, Path(path), path, options, display)
    if card is not None:
        raise ConfigError("card: goes with a network; a checkpoint has its own, or give changes")
    file = Path(checkpoint)
    ends = options.ends(network or NetworkOptions())
    if pairs is not None:
        display = display or Display(quiet=True)
        loaded = load_with_pairs(file, pairs, display, options.changes, weights=ends.weights)
    else:
        loaded = open_checkpoint(file, ends, options.changes)
    return export_loaded(loaded, file, path, options, display)


def export_loaded(
    loaded: Checkpoint,
    checkpoint: Path,
    path: str | os.PathLike[str] | None,
    options: ExportOptions,
    display: Display | None = None,
) -> ExportReport:
    """Export a checkpoint that was loaded from the file `checkpoint`; arguments and errors as of `export_onnx`."""
    started = time.perf_counter()
    display = display or Display(quiet=True)
    if options.allow is not None:
        require_bf16()
    check_size(loaded.state_dict)
    trained = loaded.card_with(options.changes, checkpoint)
    card = with_fixed_size(trained, options.fixed_size, raw=options.raw)
    if loaded.card_is_assumed:
        known = options.changes if options.fixed_size is None else replace(options.changes, size=card.input.size)
        assumed = known.assumptions(card, activation=loaded.activation_is_assumed)
        display.note(f"{loaded.described(checkpoint)} and has no card{f'; assumed: {assumed}' * bool(assumed)}")
    file = output_path(checkpoint, path, options)
    samples, pictures = _load_images(options, card, display)
    if options.precision == "int8" and not (options.int8_for or options.values or options.allow):
        display.note(int8_note(options.int8_place))
    segmenter = Segmenter(loaded.network(), card).eval()
    if options.raw and segmenter.gives_probabilities:
        raise ConfigError("--raw: writes logits, and the network ends in its own activation; leave it out")
    # Below fp32 the usual picture: what shows faults better is as sensitive to rounding, of which there is more.
    golden = make_golden(segmenter, card, candidates=CANDIDATES if options.precision == "fp32" else 0)
    expected = _answers_of_pytorch(segmenter, card, pictures, checkpoint)
    build = build_raw_graph if options.raw else build_graph
    model = build(segmenter, card, options.opset)
    if options.target == "cpu":
        card = replace(card, target="cpu")
        model = _rewrite_for_cpus(model, card, display, tune=options.tune)
    run = raw_run(model, card) if options.raw else graph_run(model)
    tolerance = allowed_error(segmenter, card)
    try:
        card = add_proof(card, run, expected, golden, loaded.rows, reference=loaded.reference, tolerance=tolerance)
    except ProofError as error:
        if isinstance(card.architecture, UNetConfig):
            raise
        raise ProofError(
            f"{error}; its code may treat some sizes in another way than the one that PyTorch traced: give --stride "
            "with a number that its sides were always multiples of, such as 16 or 32"
        ) from error
    logits_off = 0.0
    if not segmenter.gives_probabilities:
        logits = raw_run(model, card, logits=True) if options.raw else logits_run(model)
        logits_off = logits_error(logits, network_run(segmenter, logits=True), card, pictures)
    require_equal(card, run, logits_off, file)
    if options.target == "cpu":
        limit = MAX_LOGITS_ERROR["cpu"]
        display.note(f"--target cpu: logits are off by {logits_off:.1e} of their range (limit {limit:g})")
    notes = [
        *loaded.notes_on(card.input),
        *notes_on_size(options, trained, loaded.card_is_assumed),
        *([note] if (note := note_on_cuda(model)) and options.target != "cpu" else []),
    ]
    image_dice: float | None = None
    if options.precision == "fp32" and samples.labelled:
        image_dice, constant = image_dices(run, card, samples, display)
        if image_dice <= max(constant, least_dice(card)):
            notes.append(low_dice(image_dice, constant, loaded.reference))
    if len(answers_in(mask_of(one, card.output) for _, batch in expected for one in batch)) == card.output.planes:
        same = "the same classes" if card.output.overlapping else "one class"
        notes.append(
            f"the network answers {same} everywhere on the pictures of the proof, so their masks prove little"
            "; give --data with images of what it was trained for"
        )
    if options.precision != "fp32":
        card = replace(card, precision=options.precision, proof=None)
        if options.precision == "fp16":
            converted = convert_to_fp16(model, run, card, samples, options.keep, display)
        else:
            values = VALUES_FOR[options.int8_place]
            converted = convert_to_int8(model, run, card, samples, options.keep, values, display)
        model, golden = converted.model, Golden.made(golden.image, converted.run, card.input.fixed_size)
        replay = graph_run(model, optimised=False)
        card = add_proof(
            card, converted.run, expected, golden, loaded.rows, converted.gate, replay, reference=loaded.reference
        )
        image_dice = converted.gate.image_dice_fp32
        require_gate(card, converted, golden, file, force=options.force)
        notes += converted.notes
    if options.allow is not None:
        permission, doubt = judge_bf16(model, run, card, samples, expected, golden, options.max_flipped, display)
        card, golden = replace(card, bf16=permission), replace(golden, bf16=permission)
        if not permission.gate.passed:
            refuse(bf16_refusal(permission, doubt), card, file)
        notes += [note for note in notes_on_images(permission.gate) if note not in notes]
    _write(model, card, golden, file, raw=options.raw)
    return ExportReport(
        path=file,
        card=card,
        size=file.stat().st_size,
        image_dice=image_dice,
        seconds=time.perf_counter() - started,
        card_is_assumed=loaded.card_is_assumed,
        family=loaded.family,
        notes=tuple(notes),
    )


def output_path(checkpoint: Path, path: str | os.PathLike[str] | None, options: ExportOptions) -> Path:
    """Return the path of the file to write, `path` or the default one, after making its folder.

    Raises:
        OutputError: the file cannot be written there, or its name does not end in .onnx.
    """
    file = prepare_target(default_path(checkpoint, options) if path is None else path, follow=path is not None)
    if file.suffix.lower() != ".onnx":
        raise OutputError(f"{file}: expected a name that ends in .onnx, by which the other commands know it")
    return file


def default_path(checkpoint: Path, options: ExportOptions) -> Path:
    """Return the .onnx file beside the checkpoint: model.onnx, or model.KIND.onnx for what is special about it."""
    checkpoint = checkpoint if checkpoint.name else checkpoint.resolve()  # of the folder "."
    stem = checkpoint.with_name(checkpoint.name.removesuffix(".tar")).with_suffix("").name
    kind: str = "raw" if options.raw else "cpu" if options.target == "cpu" else options.precision
    if kind == "int8":
        kind = "int8-cpu" if options.int8_place == "cpu" else "int8-trt"
    fixed = [] if options.fixed_size is None else [fixed_size_text(options.fixed_size)]
    return checkpoint.with_name(".".join([stem, *([] if kind == "fp32" else [kind]), *fixed, "onnx"]))


def _load_images(options: ExportOptions, card: ModelCard, display: Display) -> tuple[Samples, list[FittedImage]]:
    """Load the samples to measure on, and the real pictures for the proof."""
    if options.data is None:
        return synthetic_samples(card), []
    samples = load_samples(
        options.data,
        card,
        layout=options.layout,
        ignore_index=options.ignore_index,
        calibrate=options.precision != "fp32",
        skip_bad=options.skip_bad,
        limits=options.limits,
        display=display,
    )
    return samples, samples.pictures(PROOF_PICTURES)


def _answers_of_pytorch(
    segmenter: Segmenter, card: ModelCard, pictures: Sequence[FittedImage], checkpoint: Path
) -> list[ExpectedAnswer]:
    """Compute the answers to compare with; raises a CheckpointError if one of them is NaN."""
    expected = list(expected_answers(network_run(segmenter), cases(card, pictures)))
    for case, probability in expected:
        if not np.isfinite(probability).all():
            raise CheckpointError(
                f"{checkpoint}: PyTorch answers NaN to a batch of {list(case.images.shape)}, so its weights are too "
                "large; train the network again, or give other --mean and --std"
            )
    return expected


def _rewrite_for_cpus(model: onnx.ModelProto, card: ModelCard, display: Display, *, tune: bool) -> onnx.ModelProto:
    """Rewrite the convolutions that get faster by it, and note how many do."""
    choice = tuned(model, card, display) if tune else Choice(forms=choose_forms(model, card))
    if choice.forms:
        display.note(
            f"--target cpu: {len(choice.forms)} of {len(rewritable(model))} convolutions of 3x3 are computed by "
            "Winograd's filtering"
        )
    else:
        display.note(
            "--target cpu: no layer is rewritten, since this network would not get faster; GPUs refuse the file all "
            "the same, so prefer the one without --target cpu"
        )
    rewritten = choice.applied(model)
    if card.input.fixed_shape is not None:
        rewritten = fold_sizes(rewritten)
    check_room(rewritten)
    return rewritten


def _write(model: onnx.ModelProto, card: ModelCard, golden: Golden, file: Path, *, raw: bool) -> None:
    """Write the file with its metadata, and open it as an application would before it takes its place."""
    model.producer_name, model.producer_version = PRODUCER, version(PRODUCER)
    set_model_props(
        model, {RAW_KEY: card.to_json()} if raw else {CARD_KEY: card.to_json(), GOLDEN_KEY: golden.to_json()}
    )
    remove_leftovers_of([file])
    with replacing(file) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        seal(temporary)
        if not raw:
            try:
                Predictor(temporary, device="cpu")
            except ModelError as error:
                raise ModelError(str(error).replace(str(temporary), str(file))) from error
    refusal_path(file).unlink(missing_ok=True)
