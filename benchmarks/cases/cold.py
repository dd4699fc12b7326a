"""Cold start: from an image file to its mask on disk in a fresh process, and in one that stays open."""

import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.cases.image_files import NO_PNG, write_jpeg
from benchmarks.measuring.rounds import interleave
from benchmarks.measuring.subprocesses import (
    LIMIT_S,
    environment_variables,
    exit_reason,
    python_command,
    run_script,
    timeout_reason,
)
from benchmarks.measuring.threads import pinned
from benchmarks.results import Measurement, Settings, Skipped, measurements_of
from runtime.errors import DeviceError
from runtime.image import load_image
from runtime.image_files.limits import LIMITS, Limits
from runtime.model_file.reader import read_model
from unet_core.reporting.progress import Display

SYNTHETIC_SIZE = (480, 640)
"""Height and width of the synthetic image, for runs without a real one."""

BARE = "ONNX Runtime, Pillow and numpy by hand"
OURS = "runtime"
KEPT = "runtime, in a process that stays open"

BARE_SCRIPT = """
import sys
import numpy as np, onnxruntime
from PIL import Image
model, image, target, threads, height, width, mode = sys.argv[1:8]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
Image.MAX_IMAGE_PIXELS = None
picture = Image.open(image).convert(mode)
pixels = np.asarray(picture.resize((int(width), int(height)), Image.Resampling.BILINEAR))
pixels = pixels[None] if pixels.ndim == 3 else pixels[None, :, :, None]
probability = session.run(["probability"], {"image": pixels})[0][0]
mask = (probability[0] > 0.5) * 255 if len(probability) == 1 else probability.argmax(0)
Image.fromarray(mask.astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST).save(target)
"""
"""A script that does less: it checks nothing, and resizes the mask, not the probability."""

OURS_SCRIPT = """
import sys
from runtime import Limits, Predictor
import cv2
model, image, target, threads, pixels = sys.argv[1:6]
cv2.setNumThreads(int(threads))
Predictor(model, "cpu", int(threads), limits=Limits.for_pixels(int(pixels))).predict(image).save(target)
"""
"""A script with one prediction. `runtime` has imported OpenCV before the script sets its threads."""

KEPT_SCRIPT = """
import sys
from runtime import Limits, Predictor
import cv2
model, image, target, threads, pixels = sys.argv[1:6]
cv2.setNumThreads(int(threads))
predictor = Predictor(model, "cpu", int(threads), limits=Limits.for_pixels(int(pixels)))
for _ in sys.stdin:
    predictor.predict(image).save(target)
    print("saved", flush=True)
"""
"""An app that keeps interpreter, libraries and model, and answers each line that it reads with a line."""


def measure(
    model: Path,
    image: Path | None = None,
    *,
    threads: int,
    limits: Limits = LIMITS,
    rounds: int = 15,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Measure seconds from an image file to its mask on disk, on the CPU.

    Libraries and model are read from the page cache, not from the disk, since an untimed start precedes each timed one.

    Args:
        model: an .onnx file.
        image: the image file; a synthetic one is made if it is None.
        threads: threads of every process.
        limits: largest image to decode.
        rounds: rounds, in which the contestants alternate.
        budget_s: seconds for all rounds; fewer are made if they would take longer.
        display: shows what is being measured; nothing is drawn while times are taken.

    Raises:
        ImageError: the image cannot be read.
        DeviceError: a process failed, so there is nothing to compare.
    """
    card = read_model(model)[0]
    if card.output.overlapping:
        return [Skipped(part="cold start", contestant="all", settings={}, reason=NO_PNG)]
    with tempfile.TemporaryDirectory() as folder, pinned(threads):
        source = image or write_jpeg(Path(folder) / "image.jpg", SYNTHETIC_SIZE, card.input.channels)
        height, width = load_image(source, limits=limits).shape[:2]
        settings: Settings = {
            "height": height,
            "width": width,
            "pictures": "synthetic" if image is None else "real",
            "device": "cpu",
            "threads": threads,
        }
        common = (model, source, Path(folder) / "mask.png", threads)
        ours = (*common, limits.pixels)
        with open_process(KEPT_SCRIPT, *ours) as ask:
            contestants: dict[str, Callable[[], object]] = {
                BARE: lambda: run_script(BARE_SCRIPT, *common, *card.input.size, card.input.channels),
                OURS: lambda: run_script(OURS_SCRIPT, *ours),
                KEPT: ask,
            }
            (display or Display(quiet=True)).note(
                f"cold start: {rounds} rounds of {len(contestants)} contestants, alternating"
            )
            times = interleave(contestants, rounds, budget_s=budget_s)
    seconds = {name: values / 1e3 for name, values in times.items()}
    return [*measurements_of(seconds, part="cold start", settings=settings, unit="s", group="cold start")]


@contextmanager
def open_process(script: str, *arguments: object, limit_s: float = LIMIT_S) -> Iterator[Callable[[], None]]:
    """Start a process that runs until the block ends; each call of the yielded function sends a line and awaits one.

    The function raises:
        DeviceError: the process has ended, or did not answer within `limit_s` seconds and was killed.
    """
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            python_command(script, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,  # or a line would be left to write after the process has ended
            env=environment_variables(),
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers, is_late = process.stdin, process.stdout, threading.Event()

        def kill_late() -> None:
            is_late.set()
            process.kill()

        def ask() -> None:
            watch = threading.Timer(limit_s, kill_late)
            watch.start()
            try:
                with suppress(BrokenPipeError):
                    requests.write(b"\n")
                answer = answers.readline()
            finally:
                watch.cancel()
            if not answer:
                code = process.wait()
                errors.seek(0)
                reason = timeout_reason(limit_s) if is_late.is_set() else exit_reason(code, errors.read())
                raise DeviceError(f"a process that stays open: {reason}")

        try:
            yield ask
        finally:
            process.kill()
