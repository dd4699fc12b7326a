"""Folders of image files to PNG masks on disk, by number of files, processed in several ways.

The contestants: a plain PyTorch script, the same with the runtime's work on images, one image after the other, a pool
of threads, `Predictor.stream`, and a stream of the int8 file in OpenVINO that decodes JPEG
files no larger than the network needs them.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases.image_files import NO_PNG
from benchmarks.contestants.base import BenchmarkModel, torch_missing
from benchmarks.contestants.openvino import OpenVinoPredictorContestant
from benchmarks.measuring.rounds import interleave
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Skipped, measurements_of
from runtime.image_files.limits import LIMITS, Limits
from runtime.predictor import Predictor
from runtime.result import Segmentation
from unet_core.reporting.progress import Display

if TYPE_CHECKING:
    from unet_core.model import Segmenter

PART = "folder"
SCRIPT, SHARED = "plain PyTorch script", "PyTorch script, our decoding, resizing and PNG"
LOOP, POOL, STREAM = "predict in a loop", "predict in a pool of threads", "stream"
FAST = "stream --fast-decode of the int8 file in OpenVINO"

FOLDER_SIZES = (8, 32, 128)
"""Numbers of files in the folders."""

PASSES = 5


def measure(
    benchmark_model: BenchmarkModel,
    images: Sequence[Path],
    *,
    folder_sizes: Sequence[int] = FOLDER_SIZES,
    threads: int,
    limits: Limits = LIMITS,
    passes: int = PASSES,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Measure images per second from files to PNG masks on disk, on the CPU.

    The fact `different` is the number of different images in a folder. Without a checkpoint there are no PyTorch
    scripts, without an int8 file or OpenVINO there is no stream of it.

    Args:
        benchmark_model: the model, and its other files.
        images: files to predict; they are repeated where a folder needs more.
        folder_sizes: numbers of files.
        threads: threads of every contestant: PyTorch, ONNX Runtime, OpenVINO, OpenCV, pool and stream.
        limits: largest image to decode.
        passes: passes over each folder.
        budget_s: seconds for all folders; at least five passes are made over each.
        display: shows what is being measured; nothing is drawn while times are taken.

    Raises:
        ModelError, CheckpointError, ImageError: a file cannot be used.
    """
    if not images:
        return [Skipped(part=PART, contestant="all", settings={}, reason="needs images, by --data")]
    if benchmark_model.card.output.overlapping:
        return [Skipped(part=PART, contestant="all", settings={}, reason=NO_PNG)]
    display = display or Display(quiet=True)
    found: list[Measurement | Skipped] = []
    no_scripts = torch_missing() or (None if benchmark_model.checkpoint else "needs --checkpoint")
    for name in (SCRIPT, SHARED) if no_scripts else ():
        found.append(Skipped(part=PART, contestant=name, settings={}, reason=no_scripts or ""))
    no_fast = OpenVinoPredictorContestant(precision="int8").unavailable_reason(benchmark_model)
    if no_fast:
        found.append(Skipped(part=PART, contestant=FAST, settings={}, reason=no_fast))
    with ExitStack() as stack:
        stack.enter_context(pinned(threads))
        predictor = stack.enter_context(Predictor(benchmark_model.path, "cpu", threads, limits=limits))
        fast = None
        if not no_fast:
            fast = stack.enter_context(
                Predictor(benchmark_model.files["int8"], "openvino", threads, limits=limits, decode="scaled")
            )
        segmenter = None if no_scripts else benchmark_model.segmenter()
        for count in folder_sizes:
            display.note(f"folder: {passes} passes over {count} files, contestants alternating")
            with tempfile.TemporaryDirectory() as copied, tempfile.TemporaryDirectory() as masks:
                paths = copies(images, count, Path(copied))
                contestants = folder_calls(predictor, segmenter, fast, paths, Path(masks), limits)
                times = interleave(contestants, passes, budget_s=budget_s and budget_s / len(folder_sizes))
            found += measurements_of(
                {name: 1e3 * count / values for name, values in times.items()},
                part=PART,
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
    predictor: Predictor,
    segmenter: "Segmenter | None",
    fast: Predictor | None,
    paths: Sequence[Path],
    out: Path,
    limits: Limits = LIMITS,
) -> dict[str, Callable[[], object]]:
    """Make the contestants, each from image files to masks `out`/STEM.png.

    There are scripts only if there is a segmenter, and a second stream only if there is a `fast` predictor.
    """
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

    def stream_of(one: Predictor) -> Callable[[], None]:
        def stream() -> None:
            for _ in one.stream(paths, then=save, workers=threads):
                pass

        return stream

    ours: dict[str, Callable[[], object]] = {LOOP: loop, POOL: pool, STREAM: stream_of(predictor)}
    if fast is not None:
        ours[FAST] = stream_of(fast)
    if segmenter is None:
        return ours
    from benchmarks.cases.folder_scripts import pytorch_script, script_with_our_images

    card = predictor.card
    return {
        SCRIPT: pytorch_script(segmenter, card, paths, target_of),
        SHARED: script_with_our_images(segmenter, card, paths, target_of, limits),
        **ours,
    }
