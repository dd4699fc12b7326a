"""Cold start: from an image file to its mask on disk in a fresh process, and in one that stays open."""

import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.cases.image_files import write_jpeg
from benchmarks.measuring.subprocesses import (
    LIMIT_S,
    environment_variables,
    exit_reason,
    python_command,
    run_script,
    timeout_reason,
)
from benchmarks.measuring.timing import interleave, pinned
from benchmarks.results import Measurement, Settings, Skipped
from runtime.errors import DeviceError
from runtime.image import load_image
from runtime.model_file.reader import read_model
from unet_core.reporting.progress import Display

SYNTHETIC_SIZE = (480, 640)
"""Height and width of the picture that stands in where there is no real one."""

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
picture = Image.open(image).convert(mode)
pixels = np.asarray(picture.resize((int(width), int(height)), Image.Resampling.BILINEAR))
pixels = pixels[None] if pixels.ndim == 3 else pixels[None, :, :, None]
probability = session.run(["probability"], {"image": pixels})[0][0]
mask = (probability[0] > 0.5) * 255 if len(probability) == 1 else probability.argmax(0)
Image.fromarray(mask.astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST).save(target)
"""
"""It does less: it checks nothing, and resizes the mask, not the probability."""

OURS_SCRIPT = """
import sys
from runtime import Predictor
import cv2
model, image, target, threads = sys.argv[1:5]
cv2.setNumThreads(int(threads))
Predictor(model, "cpu", int(threads)).predict(image).save(target)
"""
"""OpenCV has been imported by `runtime` when it is given its threads."""

KEPT_SCRIPT = """
import sys
from runtime import Predictor
import cv2
model, image, target, threads = sys.argv[1:5]
cv2.setNumThreads(int(threads))
predictor = Predictor(model, "cpu", int(threads))
for _ in sys.stdin:
    predictor.predict(image).save(target)
    print("saved", flush=True)
"""
"""An app that keeps interpreter, libraries and model; asked by a line, it answers with one."""


def measure(
    model: Path,
    image: Path | None = None,
    *,
    threads: int,
    rounds: int = 15,
    budget_s: float | None = None,
    display: Display | None = None,
) -> list[Measurement | Skipped]:
    """Seconds from an image file (a synthetic one, if None) to its mask on disk on the CPU, in turns.

    Each start follows one that does not count, so libraries and model are read from the page cache, not from the disk.

    Raises:
        ImageError: the image cannot be read.
        DeviceError: a process failed, so there is nothing to compare.
    """
    card = read_model(model)[0]
    with tempfile.TemporaryDirectory() as folder, pinned(threads):
        source = image or write_jpeg(Path(folder) / "image.jpg", SYNTHETIC_SIZE, card.input.channels)
        height, width = load_image(source).shape[:2]
        settings: Settings = {
            "height": height,
            "width": width,
            "pictures": "synthetic" if image is None else "real",
            "device": "cpu",
            "threads": threads,
        }
        common = (model, source, Path(folder) / "mask.png", threads)
        with _service(KEPT_SCRIPT, *common) as ask:
            contestants: dict[str, Callable[[], object]] = {
                BARE: lambda: run_script(BARE_SCRIPT, *common, *card.input.size, card.input.channels),
                OURS: lambda: run_script(OURS_SCRIPT, *common),
                KEPT: ask,
            }
            (display or Display(quiet=True)).note(f"cold start: {rounds} rounds of {len(contestants)} in turns")
            times = interleave(contestants, rounds, budget_s=budget_s)
    return [
        Measurement(
            part="cold start",
            contestant=name,
            settings=settings,
            unit="s",
            values=tuple((values / 1e3).tolist()),
            group="cold start",
        )
        for name, values in times.items()
    ]


@contextmanager
def _service(script: str, *arguments: object, limit_s: float = LIMIT_S) -> Iterator[Callable[[], None]]:
    """A process that goes on between calls of what is given, until the block ends; each sends a line and waits for one.

    Raises:
        DeviceError: it ends before it was told to, or a line takes longer than `limit_s` seconds and so it was ended.
    """
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            python_command(script, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,  # nothing is left to be written when it has ended already
            env=environment_variables(),
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        asks, answers, is_late = process.stdin, process.stdout, threading.Event()

        def give_up() -> None:
            is_late.set()
            process.kill()

        def ask() -> None:
            watch = threading.Timer(limit_s, give_up)
            watch.start()
            try:
                with suppress(BrokenPipeError):
                    asks.write(b"\n")
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
