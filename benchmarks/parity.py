"""Does the exported model answer as its checkpoint on real images: `python -m benchmarks.parity MODEL.onnx ...`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.environment import environment
from export.proof import network_run, parity, worst
from runtime.card import Parity
from runtime.console import Command
from runtime.errors import ImageError, ProofError
from runtime.files import make_folder, write_text
from runtime.golden import TOLERANCE
from runtime.image import fit, list_images, load_image, restore
from runtime.predictor import Predictor
from unet_core.checkpoint import load_checkpoint
from unet_core.display import Display
from unet_core.model import Segmenter

SHOWN = 5
"""Images in the table; the JSON holds all."""


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Parity of the exported model against PyTorch, at each image's original size, and the worst of each figure."""

    device: str
    images: dict[str, Parity]
    worst: Parity
    environment: dict[str, object]

    def table(self) -> str:
        """The images with the largest errors, and the worst figures of all."""
        ordered = sorted(self.images.items(), key=lambda item: -item[1].max_abs_error)
        rows = [(name, figures) for name, figures in ordered[:SHOWN]]
        lines = [f"{'image':<32} max error   pixels flipped   mask IoU   flip distance"]
        for name, figures in [*rows, (f"worst of {len(self.images)}", self.worst)]:
            lines.append(
                f"{name:<32} {figures.max_abs_error:9.1e}   {figures.flipped:13.4%}   {figures.iou:8.6f}   "
                f"{figures.flip_distance:13.1e}"
            )
        return "\n".join([*lines, f"on {self.device}, against PyTorch on the CPU"])


def measure_parity(model: Path, checkpoint: Path, images: Sequence[Path], *, device: str = "cpu") -> ParityReport:
    """Compare the exported model with the PyTorch network on image files, at their original size."""
    predictor = Predictor(model, device)
    loaded = load_checkpoint(checkpoint)
    eager = network_run(Segmenter(loaded.network(), loaded.card).eval())
    found = {}
    for path in Display().through(images, "comparing", len(images)):
        fitted = fit(load_image(path, loaded.card.input.channels), loaded.card.input)
        reference = restore(eager(fitted.image[None])[0], fitted)
        found[path.name] = parity(predictor.predict(path).probability, reference, loaded.card.output)
    return ParityReport(
        device=predictor.report.device,
        images=found,
        worst=worst(list(found.values())),
        environment=environment(model),
    )


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="What MODEL was exported from.")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Folder of real images.")
@click.option("--device", default="cpu", show_default=True, help="Of ONNX Runtime; PyTorch runs on the CPU.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for parity.json.")
def main(model: Path, checkpoint: Path, images: Path, device: str, out: Path | None) -> None:
    """Compare MODEL (.onnx) with its checkpoint in PyTorch on every image of a folder."""
    if not images.is_dir():
        raise ImageError(f"{images}: no such folder; expected one with images")
    files = list_images(images)
    if not files:
        raise ImageError(f"{images}: no images in this folder")
    if out is not None:
        make_folder(out)
    report = measure_parity(model, checkpoint, files, device=device)
    click.echo(report.table())
    if out is not None:
        write_text(out / "parity.json", json.dumps(asdict(report), indent=2) + "\n")
    if report.worst.max_abs_error > TOLERANCE[report.device.partition(":")[0]]:
        raise ProofError(
            f"{model} and {checkpoint}: their answers differ by {report.worst.max_abs_error:.2g}, expected at most "
            f"{TOLERANCE[report.device.partition(':')[0]]:g}; are they the same model?"
        )


if __name__ == "__main__":
    main()
