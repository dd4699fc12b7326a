"""The image and mask files of each car, drawn and encoded by several processes."""

import io
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import cv2
import numpy as np
from PIL import Image

from unet_core.studio.dataset_plan import VIEWS, DatasetPlan
from unet_core.studio.scene import draw_view, prepare_scene

JPEG_QUALITY = 90


@contextmanager
def drawn_cars(plan: DatasetPlan, workers: int) -> Iterator[Iterator[dict[str, bytes]]]:
    """Draw cars in `workers` processes and yield the files of one car after the other; see `draw_car`.

    Workers only draw, and the caller writes. So when the block is left early, workers are terminated at once and leave
    no half-written file.
    """
    workers = min(workers, plan.cars)
    if workers == 1:
        yield (draw_car(plan, car) for car in range(plan.cars))
        return
    # A fresh interpreter, not a fork: the caller may hold threads (OpenCV's, PyTorch's) that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker) as pool:
        try:
            with interrupts_held():
                futures = deque(pool.submit(draw_car, plan, car) for car in range(plan.cars))
            yield (futures.popleft().result() for _ in range(plan.cars))
        except BaseException:
            # Futures are not cancelled: a pool whose workers are gone fails on cancelled ones.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold back SIGINT: processes started in the block never see it, and the caller sees it after the block."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker() -> None:
    """Set up a worker process: it ignores Ctrl-C, which the caller handles, and uses one core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def draw_car(plan: DatasetPlan, car: int) -> dict[str, bytes]:
    """Draw a car from all sides; returns the content of each file by its name relative to the data set's folder."""
    scene = prepare_scene(number=car, seed=plan.seed, size=plan.size)
    files: dict[str, bytes] = {}
    for view in range(VIEWS):
        picture, mask = draw_view(scene, view=view, rng=np.random.default_rng([plan.seed, car, view]))
        # Pillow reads a plain grey ramp back as mode L; a palette that is black everywhere but at 255 stays a palette.
        palette = Image.fromarray(mask).convert("P")
        palette.putpalette([0, 0, 0] * 255 + [255, 255, 255])
        image_file, mask_file = io.BytesIO(), io.BytesIO()
        Image.fromarray(picture).save(image_file, "JPEG", quality=JPEG_QUALITY)
        palette.save(mask_file, "GIF", optimize=False)
        image_name, mask_name = plan.files(car, view)
        files |= {image_name: image_file.getvalue(), mask_name: mask_file.getvalue()}
    return files
