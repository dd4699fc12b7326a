"""unet-predict: masks for files and folders from the command line."""

from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np
from PIL import Image

from runtime.console import Command, one_line, progress_hidden
from runtime.errors import ImageError, OutputError
from runtime.files import make_folder
from runtime.image import list_images
from runtime.predictor import Predictor
from runtime.result import Segmentation, save_picture


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for NAME.png of each image.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["mask", "overlay"]),
    default="mask",
    show_default=True,
    help="mask: 0/255 for one class, class indices for several. overlay: the image with its foreground tinted.",
)
def predict(model: Path, images: tuple[Path, ...], out: Path, device: str, kind: str) -> None:
    """Segment IMAGES (files or folders) with MODEL (an .onnx file) and write OUT/NAME.png at each image's own size."""
    targets = plan(images, out)
    predictor = Predictor(model, device)
    make_folder(out)
    failures = []
    with click.progressbar(targets.items(), label="predicting", hidden=progress_hidden()) as items:
        for source, target in items:
            try:
                save_picture(render(predictor.predict(source), kind), target)
            except ImageError as error:
                failures.append(str(error))
    for failure in failures:
        click.echo(f"error: {one_line(failure)}", err=True)
    written = len(targets) - len(failures)
    click.echo(f"{written} of {len(targets)} written to {out} on {predictor.report.device}")
    if failures:
        click.get_current_context().exit(1 if written else ImageError.exit_code)


def plan(images: Iterable[Path], out: Path) -> dict[Path, Path]:
    """Which file each image is written to: {image: OUT/NAME.png}.

    Raises:
        ImageError: an image or folder is missing, or a folder holds no images.
        OutputError: two images would be written to one file, or OUT is where the images are.
    """
    targets: dict[Path, Path] = {}
    taken: dict[str, Path] = {}
    for source in _files(images):
        target = out / f"{source.stem}.png"
        if source.parent.resolve() == out.resolve():
            raise OutputError(
                f"{out}: holds {source.name} itself and perhaps other images; choose another folder with -o"
            )
        other = taken.setdefault(target.name.casefold(), source)  # on many disks Car.png and car.png are one file
        if other.resolve() != source.resolve():
            raise OutputError(f"{target}: would hold the masks of both {other} and {source}; run them apart")
        if other is source:
            targets[source] = target
    return targets


def _files(images: Iterable[Path]) -> Iterable[Path]:
    for path in images:
        if path.is_dir():
            found = list_images(path)
            if not found:
                raise ImageError(f"{path}: no images in this folder (its sub-folders are not searched)")
            yield from found
        elif path.exists():
            yield path
        else:
            raise ImageError(f"{path}: no such file or folder")


def render(result: Segmentation, kind: str) -> Image.Image:
    """The picture to write for one answer."""
    return result.picture() if kind == "mask" else Image.fromarray(np.asarray(result.overlay()))
