"""Writes a data set of drawn cars in the form of Kaggle's Carvana Image Masking Challenge.

    python -m unet_core.turntable OUT --cars 20

Every car stands on a studio turntable and is seen from 16 sides, as in the real data: pictures `{id}_{01..16}.jpg`
with masks `{id}_{01..16}_mask.gif`, the id being 12 hex digits. A whole car goes either into training or into
validation, since two views of one car are too alike to test on.

The same seed and size give the same files, byte for byte, and car k does not depend on how many cars there are.
"""

import hashlib
import io
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from runtime.commands.console import Command, Size
from runtime.errors import DataError, OutputError
from runtime.support.cpu_count import available_threads
from runtime.support.files import make_folder, write_bytes
from unet_core.reporting.progress import Display
from unet_core.studio import SMALLEST, VIEWS, draw_view, prepare_scene

CARVANA_SIZE = (1280, 1918)
"""Height and width of the real pictures."""

_JPEG_QUALITY = 90
_LARGEST = 16384


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which cars are drawn, and which of them are kept for validation: the last `val_cars`.

    Raises:
        DataError: a number is out of range; the message says which one.
    """

    cars: int
    val_cars: int
    size: tuple[int, int]
    seed: int

    def __post_init__(self) -> None:
        if self.cars < 2:
            raise DataError(f"cars = {self.cars}: at least 2 are needed, one to train on and one to validate on")
        if not 0 < self.val_cars < self.cars:
            raise DataError(f"val_cars = {self.val_cars}: expected 1 to {self.cars - 1}, with {self.cars} cars in all")
        if self.seed < 0:
            raise DataError(f"seed = {self.seed}: expected 0 or more")
        (height, width), (least_height, least_width) = self.size, SMALLEST
        if height < least_height or width < least_width:
            raise DataError(f"size {width}x{height}: too small, expected at least {least_width}x{least_height}")
        if max(height, width) > _LARGEST:
            raise DataError(f"size {width}x{height}: too large, expected at most {_LARGEST} pixels a side")

    def side(self, car: int) -> str:
        """`train` or `val`."""
        return "val" if car >= self.cars - self.val_cars else "train"

    def files(self, car: int, view: int) -> tuple[str, str]:
        """Picture and mask of a view, counted from 0, relative to the data set's folder."""
        name, side = f"{car_id(self.seed, car)}_{view + 1:02d}", self.side(car)
        return f"{side}_images/{name}.jpg", f"{side}_masks/{name}_mask.gif"


def car_id(seed: int, car: int) -> str:
    """The 12 hex digits that name a car."""
    return hashlib.blake2b(f"{seed}:{car}".encode(), digest_size=6).hexdigest()


def make_dataset(
    out: str | os.PathLike[str],
    *,
    cars: int,
    val_cars: int | None = None,
    size: tuple[int, int] = CARVANA_SIZE,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Draw `cars` cars from 16 sides into `out`/{train,val}_{images,masks}.

    Pictures are RGB JPEGs; masks are palette GIFs of the same size whose pixels are 255 on the car and 0 elsewhere.
    Files of an earlier call with the same arguments are written again; any other data set in `out` is refused.

    Args:
        cars: number of cars, at least 2.
        val_cars: how many of them go into validation, less than `cars`; a fifth of them, at least 1, if None.
        size: (height, width) in pixels, at least (32, 48); all proportions scale with it.
        seed: 0 or more; another seed draws other cars.
        workers: processes to draw with; None takes one per CPU core.

    Raises:
        DataError: an argument is out of range, or `out` holds another data set.
        OutputError: a folder or file cannot be written.
    """
    plan = Plan(cars=cars, val_cars=max(1, cars // 5) if val_cars is None else val_cars, size=size, seed=seed)
    if workers is not None and workers < 1:
        raise DataError(f"workers = {workers}: expected 1 or more")
    folder = Path(out)
    _refuse_other_dataset(folder, plan)
    for side in ("train", "val"):
        for kind in ("images", "masks"):
            make_folder(folder / f"{side}_{kind}")
    with (
        Display().bar("drawing", cars * VIEWS) as advance,
        _drawn_cars(plan, workers or available_threads()) as drawn,
    ):
        for files in drawn:
            for name, content in files.items():
                write_bytes(folder / name, content)
            advance(VIEWS)


def _refuse_other_dataset(folder: Path, plan: Plan) -> None:
    wanted = {name for car in range(plan.cars) for view in range(VIEWS) for name in plan.files(car, view)}
    for part in sorted({str(Path(name).parent) for name in wanted}):
        try:
            found = sorted((folder / part).iterdir()) if (folder / part).is_dir() else []
        except OSError as error:
            raise OutputError(f"{folder / part}: cannot be read ({error.strerror}); choose another folder") from error
        for path in found:
            if path.name.startswith("."):
                continue
            if f"{part}/{path.name}" not in wanted:
                raise DataError(f"{path}: belongs to another data set; choose an empty folder, or remove that one")
            if (size := _image_size(path)) not in (None, plan.size):
                raise DataError(
                    f"{path}: another data set, of size {size[1]}x{size[0]} not {plan.size[1]}x{plan.size[0]};"
                    " choose an empty folder, or remove that one"
                )


def _image_size(path: Path) -> tuple[int, int] | None:
    """(height, width) from the file's header; None if it is no image, and so nothing to keep."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError:
        return None


@contextmanager
def _drawn_cars(plan: Plan, workers: int) -> Iterator[Iterator[dict[str, bytes]]]:
    """Gives the files of one car after the other, drawn by `workers` processes; leaving early stops these at once.

    Workers only draw. The caller writes, so that a worker can be stopped at any moment without leaving half a file.
    """
    workers = min(workers, plan.cars)
    if workers == 1:
        yield (_draw_car(plan, car) for car in range(plan.cars))
        return
    # A fresh interpreter, not a fork: the caller may hold threads (OpenCV's, PyTorch's) that do not survive one.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            with _interrupts_held():
                futures = deque(pool.submit(_draw_car, plan, car) for car in range(plan.cars))
            yield (futures.popleft().result() for _ in range(plan.cars))
        except BaseException:
            # Futures are not cancelled: the pool, finding its workers gone, stumbles over cancelled ones.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C reaches every process; those started in here never see it, and the caller sees it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)  # one process per core already


def _draw_car(plan: Plan, car: int) -> dict[str, bytes]:
    """All files of one car: name relative to the data set's folder, content."""
    scene = prepare_scene(number=car, seed=plan.seed, size=plan.size)
    files = {}
    for view in range(VIEWS):
        picture, mask = draw_view(scene, view=view, rng=np.random.default_rng([plan.seed, car, view]))
        image_name, mask_name = plan.files(car, view)
        files[image_name] = _encode_jpeg(picture)
        files[mask_name] = _encode_mask(mask)
    return files


def _encode_jpeg(picture: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _encode_mask(mask: npt.NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(mask)
    # A plain grey ramp would be read back as mode L; black everywhere but at 255 keeps it a palette image.
    image = image.convert("P")
    image.putpalette([0, 0, 0] * 255 + [255, 255, 255])
    buffer = io.BytesIO()
    image.save(buffer, "GIF", optimize=False)
    return buffer.getvalue()


@click.command(cls=Command)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--cars", type=int, required=True, help="Number of cars; each gives 16 images.")
@click.option("--val-cars", type=int, help="How many of them are kept for validation.  [default: a fifth]")
@click.option("--size", type=Size(), default="1918x1280", show_default=True, help="Width x height in pixels.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed draws other cars.")
def main(out: Path, cars: int, val_cars: int | None, size: tuple[int, int], seed: int) -> None:
    """Draw a data set of cars on a turntable into the folder OUT, laid out like Carvana's."""
    make_dataset(out, cars=cars, val_cars=val_cars, size=size, seed=seed)
    kept = max(1, cars // 5) if val_cars is None else val_cars
    images = f"{(cars - kept) * VIEWS} training and {kept * VIEWS} validation images"
    click.echo(f"wrote {images} with masks to {out}")


if __name__ == "__main__":
    main()
