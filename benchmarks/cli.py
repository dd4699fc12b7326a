"""unet-bench: one command for all parts; `unet-bench compare` for two runs."""

import shlex
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource

from benchmarks.cases import latency, parity
from benchmarks.contestants.base import Arithmetic, BenchmarkModel
from benchmarks.measuring.environment import environment
from benchmarks.measuring.timing import MIN_ROUNDS, busy_cores, disturbance
from benchmarks.reporting import compare
from benchmarks.reporting.plots import PICTURES, draw
from benchmarks.reporting.report import markdown
from benchmarks.results import FILE_NAME, Measurement, Results, Settings, Skipped
from benchmarks.suite import ON_REQUEST, PARTS, RESULTS_OF, Plan, measure, skipped_part
from runtime.commands.console import Command, Listed, Size, version_option
from runtime.errors import ConfigError, ImageError, one_line
from runtime.image import list_images
from runtime.support.cpu_count import MAX_THREADS, available_threads
from runtime.support.files import make_folder, write_text
from unet_core.reporting.progress import Display

T = TypeVar("T")

IMAGE_FOLDERS = ("val_images", "val", "train_images", "train")
"""Of a data set, in the order in which they are looked for."""

QUICK = {"rounds": MIN_ROUNDS, "predictions": 100, "folder_sizes": (8,), "side": 1024}
"""What --quick does less of: for a look, not for figures that are told to others."""


PARTS_HELP = f"Only these parts.  [default: all but {' and '.join(ON_REQUEST)}]"


class WithDefault(click.Group):
    """`unet-bench MODEL ...` is `unet-bench run MODEL ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` before what is no command and no option of the group."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "--version"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def images_in(data: Path | None) -> list[Path]:
    """The images of a folder, or of the validation images in it, or of the training images.

    Raises:
        ImageError: there are none.
    """
    if data is None:
        return []
    folder = next((data / name for name in IMAGE_FOLDERS if (data / name).is_dir()), data)
    images = list_images(folder)
    if not images:
        raise ImageError(f"{folder}: no images in this folder")
    return images


@click.group(cls=WithDefault)
@version_option
def main() -> None:
    """Measure a model, or compare two measurements.

    unet-bench MODEL [OPTIONS] is short for unet-bench run MODEL [OPTIONS].
    """


@main.command("run", cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="What MODEL was exported from; without, no PyTorch."
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of images, or with val_images/ (and masks).")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results.json, report.md and pictures.")
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help=PARTS_HELP)
@click.option(
    "--also", multiple=True, type=click.Path(path_type=Path), help="fp16, int8 or cpu file of the same checkpoint."
)
@click.option("--batch", type=Listed(int), default="1", show_default=True, help="Batch sizes of the latency.")
@click.option("--size", type=Listed(str), help="WIDTHxHEIGHT,... of the latency.  [default: as trained]")
@click.option("--precision", type=Listed(str), help=f"Of {', '.join(get_args(Arithmetic))}.  [default: all]")
@click.option("--peer", multiple=True, help="Contestant of the latency by its name, as in the report.  [default: all]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, or auto: the CPU and the GPU.")
@click.option("--threads", type=click.IntRange(1, MAX_THREADS), help="Of all.  [default: all that may be used]")
@click.option("--rounds", type=click.IntRange(min=MIN_ROUNDS), default=20, show_default=True, help="In turns.")
@click.option("--budget", type=click.FloatRange(min=1), help="Seconds for all; then fewer rounds, and fewer of them.")
@click.option("--predictions", type=click.IntRange(min=10), default=2000, show_default=True, help="Of the memory.")
@click.option("--folder", type=Listed(int), default="8,32,128", show_default=True, help="Numbers of files.")
@click.option("--side", type=click.IntRange(min=64), default=2048, show_default=True, help="Of the image in tiles.")
@click.option("--recipe", type=click.Path(path_type=Path), help="TOML of unet-train, for training and trade-off.")
@click.option("--bases", type=Listed(int), default="8,16,32", show_default=True, help="Widths of the trade-off.")
@click.option("--limit", type=click.FloatRange(min=1), default=1800, show_default=True, help="Seconds a training.")
@click.option("--quick", is_flag=True, help="Fewest rounds, files and predictions: for a look.")
def run(
    model: Path,
    checkpoint: Path | None,
    data: Path | None,
    out: Path | None,
    parts: tuple[str, ...],
    also: tuple[Path, ...],
    budget: float | None,
    quick: bool,
    **asked: Any,
) -> None:
    """Measure MODEL (.onnx, fp32): latency against others, what surrounds it, what bounds it.

    Exit code: 0, or 1 if answers are not PyTorch's, or nothing could be measured of a part that was named.
    """
    if out is not None:
        make_folder(out)
    older = out is not None and (out / FILE_NAME).exists()
    if older:
        click.echo(f"note: {out}: holds an older run, which is replaced once something is measured", err=True)
    busy_before = busy_cores()
    with _ended_by_terminate(), tempfile.TemporaryDirectory() as scratch:
        plan = _planned(BenchmarkModel.read(model, checkpoint, also), data, Path(scratch), asked, quick, Display())
        results = Results(
            environment=environment(model), method=_method(plan, budget), disturbance=None, measurements=()
        )
        chosen = [name for name in PARTS if (name in parts if parts else name not in ON_REQUEST)]
        for index, found in enumerate(measure(plan, chosen, budget)):
            results = replace(
                results,
                measurements=(*results.measurements, *(one for one in found if isinstance(one, Measurement))),
                skipped=(*results.skipped, *(one for one in found if isinstance(one, Skipped))),
            )
            if out is not None and results.measurements:  # an older run's stay where nothing was measured
                _unfinished(results, chosen[index + 1 :], busy_before).write(out)  # kept, whatever comes
    results = replace(results, disturbance=disturbance(busy_before, busy_cores()))
    if older and not results.measurements:
        click.echo(f"note: {out}: nothing was measured, so the older run stays", err=True)
    elif out is not None:
        written = [results.write(out), out / "report.md", *draw(results, out)]
        write_text(out / "report.md", markdown(results) + _pictures(written))
        for name in PICTURES if older else ():
            if out / name not in written:
                (out / name).unlink(missing_ok=True)  # it shows the older run
        click.echo("\n".join(f"written: {path}" for path in written), err=True)
    click.echo(markdown(results))
    parity.check(results.measurements)
    missing = [name for name in parts if not any(map(results.of, RESULTS_OF.get(name, (name,))))]
    if missing:
        click.echo(f"error: nothing was measured of {', '.join(missing)}; the report says why", err=True)
        click.get_current_context().exit(1)


@main.command("compare", cls=Command)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--relative-to", help="Contestant that both are divided by first, since machines drift.")
@click.option(
    "--fail-above", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Percent that is a regression."
)
@click.option("--allow-missing", is_flag=True, help="What OLD has and NEW could not measure is no regression.")
def compare_runs(old: Path, new: Path, relative_to: str | None, fail_above: float, allow_missing: bool) -> None:
    """Compare two results.json (or their folders), measurement by measurement.

    Exit code: 0, or 1 if something is worse by more than --fail-above percent beyond doubt, or than the limits of
    errors and Dice, or could not be measured any more.
    """
    before, after = Results.read(old), Results.read(new)
    comparisons = compare.compare(before, after, relative_to=relative_to)
    asked: dict[str, Any] = {"fail_above": fail_above, "relative_to": relative_to, "allow_missing": allow_missing}
    click.echo(compare.comparison_table(before, after, comparisons, **asked), nl=False)
    if compare.regressions(comparisons, fail_above) or (not allow_missing and compare.lost(before, after)):
        click.get_current_context().exit(1)


def _unfinished(results: Results, left: Iterable[str], busy_before: float | None) -> Results:
    """The results as they stand if the run ends now: what is left is skipped, and what disturbed it before is told."""
    missing = [
        one for name in left for one in skipped_part(name, "the run ended before it") if isinstance(one, Skipped)
    ]
    return replace(results, disturbance=disturbance(busy_before, None), skipped=(*results.skipped, *missing))


def _planned(
    subject: BenchmarkModel, data: Path | None, work: Path, asked: Mapping[str, Any], quick: bool, display: Display
) -> Plan:
    latency.machines(asked["device"], asked["peer"], asked["precision"] or ())  # so that misspelt ones cost no time
    given = {
        "rounds": asked["rounds"],
        "predictions": asked["predictions"],
        "folder_sizes": _numbers("folder", asked["folder"]),
        "side": asked["side"],
    }
    return Plan(
        subject=subject,
        data=data,
        images=images_in(data),
        batches=_numbers("batch", asked["batch"]),
        sizes=_once([Size().convert(text, None, None) for text in asked["size"] or ()]),
        precisions=asked["precision"] or (),
        peers=asked["peer"],
        device=asked["device"],
        threads=asked["threads"] or available_threads(),
        recipe=asked["recipe"],
        bases=_numbers("bases", asked["bases"]),
        limit_s=asked["limit"],
        work=work,
        display=display,
        **(QUICK if quick else given),
    )


def _once(asked: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(asked))


def _numbers(option: str, asked: Iterable[int]) -> list[int]:
    """Each number once.

    Raises:
        ConfigError: one is below 1.
    """
    found = _once(asked)
    if min(found, default=1) < 1:
        raise ConfigError(f"--{option} {min(found)}: expected at least 1")
    return found


def _method(plan: Plan, budget_s: float | None) -> Settings:
    """How it was measured, with the options that were given; of files and folders the names."""
    context = click.get_current_context()
    found: dict[str, str | int | float | bool] = {"rounds": plan.rounds, "threads": plan.threads}
    if budget_s is not None:
        found["budget_s"] = budget_s
    given = {
        str(option.opts[0]): context.params[str(option.name)]
        for option in context.command.params
        if context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    }
    return found | {"options": one_line(" ".join(_option(name, value) for name, value in given.items()))[:2000]}


def _option(name: str, value: Any) -> str:
    """An option as it was given, "--batch 1,4"."""
    if value is True:
        return name
    values = value if isinstance(value, tuple) else (value,)
    words = [one.name if isinstance(one, Path) else str(one) for one in values]
    if name in ("--part", "--peer", "--also"):  # given once for each
        return " ".join(f"{name} {shlex.quote(word)}" for word in words)
    return shlex.join([*([name] if name.startswith("-") else []), ",".join(words)])


@contextmanager
def _ended_by_terminate() -> Iterator[None]:
    """SIGTERM ends the block as an error would, so that folders for work are removed."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _pictures(written: Sequence[Path]) -> str:
    """Links to the pictures beside the report."""
    return "".join(f"\n![{path.stem}]({path.name})\n" for path in written if path.suffix == ".png")


def only(*parts: str) -> None:
    """`python -m benchmarks.cases.latency MODEL ...` is `unet-bench MODEL ... --part latency`."""
    main([*sys.argv[1:], *(word for part in parts for word in ("--part", part))])
