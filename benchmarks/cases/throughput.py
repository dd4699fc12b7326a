"""What `runtime` costs around the network, and what it brings to folders of files.

*overhead*: `Predictor.run` against a bare session with the same settings, and `predict` with the work on the image.
*folder*: image files to PNG masks on disk, by number of files: what one writes in PyTorch, the same with the runtime's
work on pictures, one image after the other, a pool of threads, and `Predictor.stream`.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch.nn import functional

from benchmarks.measuring.timing import interleave, pinned
from benchmarks.results import Measurement, Settings, Skipped
from runtime.card import ModelCard
from runtime.devices.session import session_options
from runtime.image import fit, load_image, restore
from runtime.model_file.golden import synthetic_image
from runtime.predictor import Predictor
from runtime.result import Segmentation
from unet_core.checkpoint import load_checkpoint
from unet_core.model import Segmenter
from unet_core.reporting.progress import Display

BARE, RUN, PREDICT = "bare session.run", "Predictor.run", "Predictor.predict, from a decoded image of "
SCRIPT, SHARED = "plain PyTorch script", "PyTorch script, our decoding, resizing and PNG"
LOOP, POOL, STREAM = "predict in a loop", "predict in a pool of threads", "stream"

FOLDER_SIZES = (8, 32, 128)
"""Files of a pass."""

PASSES = 5

Calls = Mapping[str, Callable[[], object]]
"""Contestants by name."""


def overhead(
    model: Path,
    image: Path | None = None,
    *,
    threads: int,
    rounds: int = 15,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """One image of the trained size on the CPU: a bare session, ours, and ours from decoded pixels (or synthetic ones).

    Raises:
        ModelError, ImageError: a file cannot be used.
    """
    (display or Display(quiet=True)).note(f"overhead: {rounds} rounds in turns")
    with pinned(threads), Predictor(model, "cpu", threads) as predictor:
        return [*_overhead(predictor, image, rounds, budget_s)]


def folder(
    model: Path,
    checkpoint: Path | None,
    images: Sequence[Path],
    *,
    folder_sizes: Sequence[int] = FOLDER_SIZES,
    threads: int,
    passes: int = PASSES,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Files to PNG masks on disk, on the CPU.

    Args:
        model: an .onnx file.
        checkpoint: what it was exported from; without it there are no PyTorch scripts.
        images: files to answer; where a pass needs more they are taken again.
        folder_sizes: numbers of files.
        threads: of every contestant: PyTorch, ONNX Runtime, OpenCV, pool and stream.
        passes: over each folder.
        budget_s: seconds for all folders; at least five passes are made over each.
        display: where it is said what is being measured; nothing is drawn while a clock runs.

    Raises:
        ModelError, CheckpointError, ImageError: a file cannot be used.
    """
    if not images:
        return [_skipped("all", {}, "needs images, by --data")]
    display = display or Display(quiet=True)
    found: list[Measurement | Skipped] = []
    if checkpoint is None:
        found += [_skipped(name, {}, "needs --checkpoint") for name in (SCRIPT, SHARED)]
    with pinned(threads), Predictor(model, "cpu", threads) as predictor:
        for count in folder_sizes:
            display.note(f"folder: {passes} passes over {count} files in turns")
            found += _folder(predictor, checkpoint, images, count, passes, budget_s and budget_s / len(folder_sizes))
    return found


def _skipped(contestant: str, settings: Settings, reason: str) -> Skipped:
    return Skipped(part="folder", contestant=contestant, settings=settings, reason=reason)


def _overhead(predictor: Predictor, image: Path | None, rounds: int, budget_s: float | None) -> list[Measurement]:
    """Milliseconds of one image of the trained size."""
    height, width = predictor.card.input.size
    settings: Settings = {
        "batch": 1,
        "height": height,
        "width": width,
        "device": "cpu",
        "threads": predictor.report.threads,
    }
    times = interleave(overhead_calls(predictor, image), rounds, budget_s=budget_s)
    return [
        Measurement(
            part="overhead",
            contestant=name,
            settings=settings,
            unit="ms",
            values=tuple(values.tolist()),
            group="overhead",
        )
        for name, values in times.items()
    ]


def overhead_calls(predictor: Predictor, image: Path | None) -> Calls:
    """A bare session with the options of ours, ours, and ours from decoded pixels, synthetic ones without an image."""
    options = session_options(predictor.report.threads)
    session = onnxruntime.InferenceSession(os.fspath(predictor.path), options, providers=["CPUExecutionProvider"])
    card = predictor.card
    batch = synthetic_image(*card.input.size, card.architecture.in_channels, 0)[None]
    pixels = batch[0] if image is None else load_image(image, card.input.channels)
    return {
        BARE: lambda: session.run(["probability"], {"image": batch}),
        RUN: lambda: predictor.run(batch),
        f"{PREDICT}{pixels.shape[1]}x{pixels.shape[0]}": lambda: predictor.predict(pixels),
    }


def _folder(
    predictor: Predictor,
    checkpoint: Path | None,
    images: Sequence[Path],
    count: int,
    passes: int,
    budget_s: float | None,
) -> list[Measurement]:
    """Images per second over so many files; `facts` say how many of them are different."""
    settings: Settings = {"images": count, "device": "cpu", "threads": predictor.report.threads}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as masks:
        paths = copies(images, count, Path(folder))
        times = interleave(folder_calls(predictor, checkpoint, paths, Path(masks)), passes, budget_s=budget_s)
    return [
        Measurement(
            part="folder",
            contestant=name,
            settings=settings,
            unit="images/s",
            values=tuple((1e3 * count / values).tolist()),
            group=f"folder of {count}",
            facts={"different": min(count, len(images))},
        )
        for name, values in times.items()
    ]


def copies(images: Sequence[Path], count: int, folder: Path) -> list[Path]:
    """So many files in a folder, the images again and again, under names of their own."""
    paths = [folder / f"{index}{image.suffix}" for index, image in enumerate(islice(cycle(images), count))]
    for path, image in zip(paths, cycle(images), strict=False):
        shutil.copyfile(image, path)
    return paths


def folder_calls(predictor: Predictor, checkpoint: Path | None, paths: Sequence[Path], out: Path) -> Calls:
    """Ways from image files to masks `out`/STEM.png; the scripts only where there is a checkpoint."""
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

    ours = {LOOP: loop, POOL: pool, STREAM: stream}
    if checkpoint is None:
        return ours
    card = predictor.card
    network = Segmenter(load_checkpoint(checkpoint).network(), card).eval()
    return {
        SCRIPT: _script(network, card, paths, target_of),
        SHARED: _shared(network, card, paths, target_of),
        **ours,
    }


def _script(
    network: Segmenter, card: ModelCard, paths: Sequence[Path], target_of: Callable[[Path], Path]
) -> Callable[[], None]:
    """What one writes without any library: image after image, resized as trained and back."""
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


def _shared(
    network: Segmenter, card: ModelCard, paths: Sequence[Path], target_of: Callable[[Path], Path]
) -> Callable[[], None]:
    """The script with all of the runtime's work on pictures, so that only the network is computed otherwise."""

    def run() -> None:
        for path in paths:
            image = load_image(path, card.input.channels)
            fitted = fit(image, card.input)
            with torch.inference_mode():
                probability = network(torch.from_numpy(fitted.image[None])).numpy()[0]
            result = Segmentation(probability=restore(probability, fitted), image=image, output=card.output)
            result.save(target_of(path))

    return run
