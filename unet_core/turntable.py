"""Writes a data set of drawn cars in the layout of Kaggle's Carvana Image Masking Challenge.

    python -m unet_core.turntable OUT --cars 20

Every car stands on a studio turntable and is seen from 16 sides, as in the real data: pictures `{id}_{01..16}.jpg`
with masks `{id}_{01..16}_mask.gif`; the id is 12 hex digits. A whole car goes either into training or into validation,
since two views of one car are too similar to validate on.

The same seed and size give the same files, byte for byte, and a car does not depend on the number of cars.
"""

import os
from pathlib import Path

import click

from runtime.commands.console import Command, Size, echo
from runtime.commands.entry import exit_without
from runtime.errors import DataError, OutputError
from runtime.support.cpu_count import available_threads
from runtime.support.files import make_inner_folder, write_bytes
from unet_core.studio.dataset_plan import VIEWS, DatasetPlan

CARVANA_SIZE = (1280, 1918)
"""Size (height, width) of Carvana's pictures."""


def make_dataset(
    out: str | os.PathLike[str],
    *,
    cars: int,
    val_cars: int | None = None,
    size: tuple[int, int] = CARVANA_SIZE,
    seed: int = 0,
    workers: int | None = None,
) -> tuple[int, int]:
    """Draw `cars` cars from 16 sides into `out`/{train,val}_{images,masks}.

    Pictures are RGB JPEGs; masks are palette GIFs of the same size, whose pixels are 255 on the car and 0 elsewhere.
    Files of an earlier call with the same arguments are overwritten; a folder that holds another data set is refused.

    Args:
        cars: number of cars, at least 2.
        val_cars: number of cars for validation, less than `cars`; None takes a fifth, at least 1.
        size: (height, width) in pixels, at least (32, 48); all proportions scale with it.
        seed: 0 or more; another seed draws other cars.
        workers: number of processes that draw; None takes one per CPU core.

    Returns:
        Numbers of training images and of validation images.

    Raises:
        DataError: an argument is out of range, or `out` holds another data set.
        OutputError: a folder or file cannot be written.
    """
    from unet_core.reporting.progress import Display
    from unet_core.studio.car_files import drawn_cars

    plan = DatasetPlan(cars=cars, val_cars=max(1, cars // 5) if val_cars is None else val_cars, size=size, seed=seed)
    if workers is not None and workers < 1:
        raise DataError(f"workers = {workers}: expected 1 or more")
    folder = Path(out)
    refuse_other_dataset(folder, plan)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            make_inner_folder(folder, f"{split}_{kind}")
    with (
        Display().bar("drawing", cars * VIEWS) as advance,
        drawn_cars(plan, workers or available_threads()) as drawn,
    ):
        for files in drawn:
            for name, content in files.items():
                write_bytes(folder / name, content)
            advance(VIEWS)
    return (cars - plan.val_cars) * VIEWS, plan.val_cars * VIEWS


def refuse_other_dataset(folder: Path, plan: DatasetPlan) -> None:
    """Raise a DataError if the folder holds files that are not in the plan, or images of another size."""
    from PIL import Image

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
            try:
                with Image.open(path) as image:
                    width, height = image.size
            except OSError:
                continue  # not an image, so nothing to keep
            if (height, width) != plan.size:
                raise DataError(
                    f"{path}: another data set, of size {width}x{height} not {plan.size[1]}x{plan.size[0]};"
                    " choose an empty folder, or remove that one"
                )


@click.command(cls=Command)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--cars", type=int, required=True, help="Number of cars; each gives 16 images.")
@click.option("--val-cars", type=int, help="Number of cars kept for validation.  [default: a fifth]")
@click.option("--size", type=Size(), default="1918x1280", show_default=True, help="Width x height in pixels.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random numbers that draw the cars.")
def main(out: Path, cars: int, val_cars: int | None, size: tuple[int, int], seed: int) -> None:
    """Draw a data set of cars on a turntable into the folder OUT, in Carvana's layout."""
    try:
        training, validation = make_dataset(out, cars=cars, val_cars=val_cars, size=size, seed=seed)
    except ModuleNotFoundError as error:
        exit_without(error, extra="train")
    echo(f"wrote {training} training and {validation} validation images with masks to {out}")


if __name__ == "__main__":
    main()
