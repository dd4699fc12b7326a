"""Parity: the exported model's answers against its checkpoint's, on real images at their original size."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.contestants.onnx_runtime import OURS
from benchmarks.measuring.threads import pinned
from benchmarks.results import MAX_VALUES, Measurement, Settings, Skipped
from runtime.card import Parity
from runtime.devices.registry import BACKENDS
from runtime.errors import ProofError
from runtime.image import fit, load_image, restore
from runtime.image_files.limits import LIMITS, Limits
from runtime.predictor import Predictor
from unet_core.model_options import NetworkOptions
from unet_core.reporting.progress import Display


def measure(
    model: Path,
    checkpoint: Path | None,
    images: Sequence[Path],
    *,
    network: NetworkOptions | None = None,
    device: str = "cpu",
    threads: int,
    limits: Limits = LIMITS,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Compare the exported model with the PyTorch network on image files, one value an image, in the files' order.

    `network` makes the checkpoint's network where that is not one of this library.

    There are two measurements: the largest |p - PyTorch's p| of an image ("error"), and the share of its pixels whose
    class differs ("share"). The facts are the worst figures of all images, the file with the largest error, and for an
    fp32 file the largest error that is allowed on this device, which `require_parity` checks. At most `MAX_VALUES`
    files are compared, spread over all; `limits` are those of the images.

    Raises:
        ModelError, CheckpointError, ImageError: a file cannot be used.
        DeviceError: the device does not run here.
    """
    if checkpoint is None or not images:
        reason = "needs --checkpoint" if checkpoint is None else "needs images, by --data"
        return [Skipped(part="parity", contestant=OURS, settings={}, reason=reason)]
    from export.proof import network_run, parity, worst
    from export.samples import spread
    from unet_core.model import Segmenter
    from unet_core.networks.checkpoint import open_checkpoint_of

    files = spread(images, MAX_VALUES)
    found: list[Parity] = []
    with pinned(threads), Predictor(model, device, threads, limits=limits) as predictor:
        runs_on = predictor.report.device
        card = predictor.card
        loaded = open_checkpoint_of(card, model, checkpoint, network or NetworkOptions())
        eager = network_run(Segmenter(loaded.network(), card).eval())
        for path in (display or Display(quiet=True)).through(files, "comparing", len(files)):
            fitted = fit(load_image(path, card.input.channels, limits=limits, levels=card.input.levels), card.input)
            reference = restore(eager(fitted.image[None])[0], fitted)
            found.append(parity(predictor.predict(path).probability, reference, card.output))
        precision = card.precision
    settings: Settings = {"images": len(files), "precision": precision, "device": runs_on, "threads": threads}
    figures, largest = worst(found), max(range(len(found)), key=lambda index: found[index].max_abs_error)
    facts: dict[str, str | float] = {
        "max_abs_error": figures.max_abs_error,
        "flipped": figures.flipped,
        "iou": figures.iou,
        "flip_distance": figures.flip_distance,
        "worst_image": "".join(letter if letter.isprintable() else "?" for letter in files[largest].name),
    }
    if precision == "fp32":
        proved = card.proof.tolerance if card.proof is not None and card.proof.tolerance is not None else 0.0
        facts["allowed"] = max(BACKENDS[runs_on.partition(":")[0]].tolerance, proved)
    return [
        Measurement(
            part="parity",
            contestant=OURS,
            settings=settings,
            unit=unit,
            values=tuple(values),
            facts=facts,
        )
        for unit, values in (
            ("error", [one.max_abs_error for one in found]),
            ("share", [one.flipped for one in found]),
        )
    ]


def require_parity(found: Sequence[Measurement | Skipped]) -> None:
    """Check the errors of parity among these results.

    Raises:
        ProofError: an error is larger than is allowed.
    """
    for one in found:
        if isinstance(one, Skipped) or one.part != "parity" or "allowed" not in one.facts:
            continue
        error, allowed = float(one.facts["max_abs_error"]), float(one.facts["allowed"])
        if error > allowed:
            raise ProofError(
                f"parity on {one.settings['device']}: answers differ by {error:.2g} from PyTorch's, "
                f"expected at most {allowed:g}; are model and checkpoint the same?"
            )
