"""Folders of image files to PNG masks on disk, by number of files, processed in several ways.

The contestants: a plain PyTorch script, the same with the runtime's work on images, one image after the other, a pool
of threads, and `Predictor.stream`.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from benchmarks.cases.image_files import NO_PNG
from benchmarks.measuring.rounds import interleave
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Skipped, measurements_of
from runtime.card import ModelCard
from runtime.image import fit, load_image, restore
from runtime.model_file.reader import read_model
from runtime.predictor import Predictor
from runtime.result import Segmentation
from unet_core.model import Segmenter
from unet_core.model_options import NetworkOptions
from unet_core.networks.checkpoint import open_checkpoint_of
from unet_core.reporting.progress import Display

SCRIPT, SHARED = "plain PyTorch script", "PyTorch script, our decoding, resizing and PNG"
LOOP, POOL, STREAM = "predict in a loop", "predict in a pool of threads", "stream"

FOLDER_SIZES = (8, 32, 128)
"""Numbers of files in the folders."""

PASSES = 5


def measure(
    model: Path,
    checkpoint: Path | None,
    images: Sequence[Path],
    *,
    network: NetworkOptions | None = None,
    folder_sizes: Sequence[int] = FOLDER_SIZES,
    threads: int,
    passes: int = PASSES,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Measure images per second from files to PNG masks on disk, on the CPU.

    The fact `different` is the number of different images in a folder.

    Args:
        model: an .onnx file.
        checkpoint: the file that it was exported from; without it there are no PyTorch scripts.
        network: how the checkpoint's network is made where it is not one of this library.
        images: files to predict; they are repeated where a folder needs more.
        folder_sizes: numbers of files.
        threads: threads of every contestant: PyTorch, ONNX Runtime, OpenCV, pool and stream.
        passes: passes over each folder.
        budget_s: seconds for all folders; at least five passes are made over each.
        display: shows what is being measured; nothing is drawn while times are taken.

    Raises:
        ModelError, CheckpointError, ImageError: a file cannot be used.
    """
    if not images:
        return [Skipped(part="folder", contestant="all", settings={}, reason="needs images, by --data")]
    if read_model(model)[0].output.overlapping:
        return [Skipped(part="folder", contestant="all", settings={}, reason=NO_PNG)]
    display = display or Display(quiet=True)
    found: list[Measurement | Skipped] = []
    for name in (SCRIPT, SHARED) if checkpoint is None else ():
        found.append(Skipped(part="folder", contestant=name, settings={}, reason="needs --checkpoint"))
    with pinned(threads), Predictor(model, "cpu", threads) as predictor:
        segmenter = None
        if checkpoint is not None:
            loaded = open_checkpoint_of(predictor.card, model, checkpoint, network or NetworkOptions())
            segmenter = Segmenter(loaded.network(), predictor.card).eval()
        for count in folder_sizes:
            display.note(f"folder: {passes} passes over {count} files, contestants alternating")
            with tempfile.TemporaryDirectory() as copied, tempfile.TemporaryDirectory() as masks:
                paths = copies(images, count, Path(copied))
                contestants = folder_calls(predictor, segmenter, paths, Path(masks))
                times = interleave(contestants, passes, budget_s=budget_s and budget_s / len(folder_sizes))
            found += measurements_of(
                {name: 1e3 * count / values for name, values in times.items()},
                part="folder",
                settings={"images": count, "device": "cpu", "threads": predictor.report.threads},
                unit="images/s",
                group=f"folder of {count}",
                facts={"different": min(count, len(images))},
            )
    return found


def copies(images: Sequence[Path], count: int, folder: Path) -> list[Path]:
    """Copy so many images into a folder, under names of their own; they are repeated if there are fewer."""
    paths = [folder / f"{index}{image.suffix}" for index, image in enumerate(islice(cycle(images), count))]
    for path, image in zip(paths, cycle(images), strict=False):
        shutil.copyfile(image, path)
    return paths


def folder_calls(
    predictor: Predictor, segmenter: Segmenter | None, paths: Sequence[Path], out: Path
) -> dict[str, Callable[[], object]]:
    """Make the contestants, each from image files to masks `out`/STEM.png; scripts only if there is a segmenter."""
    threads = predictor.report.threads

    def target_of(path: Path) -> Path:
        return out / f"{path.stem}.png"

    def answer(path: Path) -> None:
        predictor.predict(path).save(target_of(path))

    def loop() -> None:
        for path in paths:
            answer(path)

    def pool() -> None:
        with ThreadPoolExecutor(threads) as executor:
            list(executor.map(answer, paths))

    def save(path: Path, result: Segmentation) -> Path:
        return result.save(target_of(path))

    def stream() -> None:
        for _ in predictor.stream(paths, then=save, workers=threads):
            pass

    ours: dict[str, Callable[[], object]] = {LOOP: loop, POOL: pool, STREAM: stream}
    if segmenter is None:
        return ours
    return {
        SCRIPT: pytorch_script(segmenter, predictor.card, paths, target_of),
        SHARED: script_with_our_images(segmenter, predictor.card, paths, target_of),
        **ours,
    }


def pytorch_script(
    network: Segmenter, card: ModelCard, paths: Sequence[Path], target_of: Callable[[Path], Path]
) -> Callable[[], None]:
    """Make a script as one writes it without a library: one image after the other, resized as trained and back."""
    height, width = card.input.size

    def run() -> None:
        for path in paths:
            picture = Image.open(path).convert(card.input.channels)
            pixels = np.array(picture.resize((width, height), Image.Resampling.BILINEAR)).reshape(1, height, width, -1)
            with torch.inference_mode():
                small = network(torch.from_numpy(pixels))
                probability = functional.interpolate(small, picture.size[::-1], mode="bilinear")[0]
            mask = (probability[0] > 0.5) * 255 if len(probability) == 1 else probability.argmax(0)
            Image.fromarray(mask.numpy().astype(np.uint8)).save(target_of(path))

    return run


def script_with_our_images(
    network: Segmenter, card: ModelCard, paths: Sequence[Path], target_of: Callable[[Path], Path]
) -> Callable[[], None]:
    """Make a script with all of the runtime's work on images, so that only the network is computed otherwise."""

    def run() -> None:
        for path in paths:
            image = load_image(path, card.input.channels)
            fitted = fit(image, card.input)
            with torch.inference_mode():
                probability = network(torch.from_numpy(fitted.image[None])).numpy()[0]
            result = Segmentation(probability=restore(probability, fitted), image=image, output=card.output)
            result.save(target_of(path))

    return run
