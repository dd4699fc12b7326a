"""unet-bench: the options of a run and of comparing two runs.

Each command imports what it needs when it runs, so that --help needs neither PyTorch nor NumPy.
"""

import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from benchmarks.measuring.subprocesses import end_on_sigterm
from benchmarks.suite import PARTS, BenchmarkPlan, measure_parts
from runtime.commands.console import Command, Listed, Size, echo, max_pixels_option, version_option
from runtime.commands.entry import exit_without
from runtime.commands.suggestions import did_you_mean, nearest
from runtime.errors import ConfigError, ImageError, one_line
from runtime.image_files.limits import Limits
from runtime.support.cpu_count import MAX_THREADS, available_threads
from runtime.support.files import make_folder, write_text
from unet_core.model_options import NETWORK_OPTIONS, network_options, with_network_options

if TYPE_CHECKING:
    from benchmarks.contestants.base import BenchmarkModel
    from benchmarks.results import Results

IMAGE_FOLDERS = ("val_images", "val", "train_images", "train")
"""Folders of a data set that have images, in the order in which they are looked for."""

MIN_ROUNDS, PRECISIONS = 5, ("fp32", "tf32", "fp16", "bf16", "int8")
"""Copies of `rounds.MIN_ROUNDS` and `Arithmetic`, whose modules are too heavy for --help."""

QUICK: Mapping[str, Any] = {"rounds": MIN_ROUNDS, "predictions": 100, "folder_sizes": (8,), "side": 1024}
"""Fields of a plan with --quick."""

TRIAL: Mapping[str, Any] = {"rounds": 1, "predictions": 10, "side": 640}
"""Fields of a plan in a trial, whatever the options say: see `benchmarks.measuring.rounds.TRIAL`.

The side is that of the smallest round image of which a tile of 512x512 is only a part.
"""

PARTS_HELP = (
    "Measure only this part; may be repeated.  "
    f"[default: all but {', '.join(part.name for part in PARTS.values() if part.on_request)}]"
)


class RunByDefault(click.Group):
    """`unet-bench MODEL ...` is `unet-bench run MODEL ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` before a first argument that is neither a command nor an option of the group."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "--version"):
            meant = nearest(args[0], self.commands)
            if meant and not Path(args[0]).exists():
                raise click.UsageError(f"No such command {args[0]!r}.{did_you_mean(meant)}", ctx)
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=RunByDefault, params=[version_option()])
def main() -> None:
    """Measure a model, or compare two measurements.

    unet-bench MODEL [OPTIONS] is short for unet-bench run MODEL [OPTIONS], whose --help lists the options.
    """


@main.command("run", cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Checkpoint that MODEL was exported from; without it PyTorch is not measured.",
)
@with_network_options
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of images, or data set with val_images/ (and masks)."
)
@max_pixels_option
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder for results.json, report.md and pictures.  [default: bench-MODEL, or the next free bench-MODEL-N]",
)
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help=PARTS_HELP)
@click.option(
    "--also",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Another file of the same checkpoint: fp16, int8 or for CPUs; may be repeated.",
)
@click.option("--batch", type=Listed(int), default="1", show_default=True, help="Batch sizes for the latency.")
@click.option("--size", type=Listed(str), help="WIDTHxHEIGHT,... for the latency, in pixels.  [default: as trained]")
@click.option(
    "--precision", type=Listed(str), help=f"Precisions for the latency: {', '.join(PRECISIONS)}.  [default: all]"
)
@click.option(
    "--contestant",
    "--peer",
    "contestants",
    multiple=True,
    help="Measure the latency of this contestant only, named as in the report; may be repeated.  [default: all]",
)
@click.option(
    "--device", default="auto", show_default=True, help="cpu, gpu, gpu:N (or N), or auto for the CPU and the first GPU."
)
@click.option(
    "--threads", type=click.IntRange(1, MAX_THREADS), help="CPU threads of each contestant.  [default: all cores]"
)
@click.option(
    "--rounds",
    type=click.IntRange(min=MIN_ROUNDS),
    default=20,
    show_default=True,
    help="Rounds of timing, in which the contestants take turns.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=1),
    help="Seconds for all parts together; if time is short there are fewer rounds, and contestants are skipped.",
)
@click.option(
    "--predictions",
    type=click.IntRange(min=10),
    default=2000,
    show_default=True,
    help="Predictions after which the memory part ends.",
)
@click.option(
    "--folder", type=Listed(int), default="8,32,128", show_default=True, help="Numbers of files for the folder part."
)
@click.option(
    "--side",
    type=click.IntRange(min=64),
    default=2048,
    show_default=True,
    help="Side of the memory part's large square image, in pixels.",
)
@click.option(
    "--recipe", type=click.Path(path_type=Path), help="TOML settings of unet-train, for training and trade-off."
)
@click.option(
    "--trained",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Checkpoint of a trained U-Net for part which, of a width of its own; may be repeated.",
)
@click.option(
    "--bases",
    type=Listed(int),
    help="Channels of the first level of each network in trade-off and which.  "
    "[default: 8,16,32; for which also 64, or the widths of --trained]",
)
@click.option(
    "--limit",
    type=click.FloatRange(min=1),
    default=1800,
    show_default=True,
    help="Seconds that each training of trade-off may take.",
)
@click.option("--quick", is_flag=True, help="Fewest rounds, files and predictions, for a first look.")
def run(
    model: Path,
    checkpoint: Path | None,
    data: Path | None,
    out: Path | None,
    parts: tuple[str, ...],
    also: tuple[Path, ...],
    budget: float | None,
    **options: Any,
) -> None:
    """Measure MODEL, an fp32 .onnx file: its latency beside other libraries, the work around it, and what limits it.

    Exit code: 0, or 1 if answers differ from PyTorch's or nothing could be measured of a part that was named.
    """
    try:
        from benchmarks.cases.parity import require_parity
        from benchmarks.contestants.base import BenchmarkModel
        from benchmarks.measuring.environment import busy_cores, disturbance, environment
        from benchmarks.reporting import plots  # noqa: F401 - fails without matplotlib, before hours of measuring
        from benchmarks.reporting.report import markdown
        from benchmarks.results import FILE_NAME, Measurement, Results, Skipped
    except ModuleNotFoundError as error:
        exit_without(error, extra="bench")

    named = {name: options.pop(name) for name in NETWORK_OPTIONS}
    named = {name: value for name, value in named.items() if value is not None and value != ()}
    network = network_options(named)
    if named and checkpoint is None:
        raise ConfigError(f"--{next(iter(named)).replace('_', '-')}: is for a checkpoint; give --checkpoint too")
    busy_before = busy_cores()
    names = [name for name, part in PARTS.items() if (name in parts if parts else not part.on_request)]
    with end_on_sigterm(), tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        plan = plan_of(BenchmarkModel.read(model, checkpoint, also, network), data, Path(folder), options)
        # After the options were checked, and before anything is measured.
        out = stack.enter_context(run_folder(out, model))
        older = (out / FILE_NAME).exists()
        if older:
            echo(f"note: {out}: holds an older run, which is replaced once something is measured", err=True)
        results = Results(
            environment=environment(model), method=method_of(plan, budget), disturbance=None, measurements=()
        )
        for index, found in enumerate(measure_parts(plan, names, budget)):
            results = replace(
                results,
                measurements=(*results.measurements, *(one for one in found if isinstance(one, Measurement))),
                skipped=(*results.skipped, *(one for one in found if isinstance(one, Skipped))),
            )
            if results.measurements:  # written after each part, in case the run ends here
                left = [one for name in names[index + 1 :] for one in PARTS[name].skipped("the run ended before it")]
                unfinished = (*results.skipped, *(one for one in left if isinstance(one, Skipped)))
                replace(results, disturbance=disturbance(busy_before, None), skipped=unfinished).write(out)
    results = replace(results, disturbance=disturbance(busy_before, busy_cores()))
    if older and not results.measurements:
        echo(f"note: {out}: nothing was measured, so the older run stays", err=True)
    else:
        write_report(results, out, replace_pictures=older)
    echo(markdown(results))
    require_parity(results.measurements)
    missing = [name for name in parts if not any(map(results.of, PARTS[name].results or (name,)))]
    if missing:
        echo(f"error: nothing was measured of {', '.join(missing)}; the report says why", err=True)
        click.get_current_context().exit(1)


@main.command("compare", cls=Command)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--relative-to", help="Contestant by whose times each run is divided first, because machines drift between runs."
)
@click.option(
    "--fail-above",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Percent by which a value may get worse before it is a regression.",
)
@click.option(
    "--allow-missing",
    is_flag=True,
    help="Accept measurements of OLD that NEW could not take; else they are regressions.",
)
def compare_runs(old: Path, new: Path, relative_to: str | None, fail_above: float, allow_missing: bool) -> None:
    """Compare two results.json (or their folders), measurement by measurement.

    Exit code: 0, or 1 if something is worse by more than --fail-above percent beyond doubt, or than the limits of
    errors and Dice, or could no longer be measured.
    """
    from benchmarks.reporting.compare import compare_results, comparison_report, lost_measurements, regressions
    from benchmarks.results import Results

    before, after = Results.read(old), Results.read(new)
    comparisons = compare_results(before, after, relative_to=relative_to)
    table = comparison_report(
        before, after, comparisons, fail_above=fail_above, relative_to=relative_to, allow_missing=allow_missing
    )
    echo(table.removesuffix("\n"))
    if regressions(comparisons, fail_above) or (not allow_missing and lost_measurements(before, after)):
        click.get_current_context().exit(1)


def plan_of(
    benchmark_model: "BenchmarkModel", data: Path | None, folder: Path, options: dict[str, Any]
) -> BenchmarkPlan:
    """Check the options of a run and make a plan of them; `folder` is an empty one for files of the parts.

    Raises:
        ConfigError: an option is invalid.
        DeviceError: there is no such device.
        ImageError: there are no images in `data`.
    """
    from benchmarks.cases.latency import contestants_by_machine
    from benchmarks.measuring.rounds import is_trial
    from runtime.devices.availability import device_name
    from unet_core.reporting.progress import Display

    numbers = {name: tuple(dict.fromkeys(options[name] or ())) for name in ("folder", "batch", "bases")}
    for name, values in numbers.items():
        if min(values, default=1) < 1:
            raise ConfigError(f"--{name} {min(values)}: expected at least 1")
    devices = re.sub("^gpu", "cuda", device_name(options["device"]))  # which stands for all that runs on that GPU
    contestants_by_machine(devices, options["contestants"], options["precision"] or ())  # refuses unknown ones
    plan = BenchmarkPlan(
        benchmark_model=benchmark_model,
        data=data,
        images=images_in(data),
        batches=numbers["batch"],
        sizes=tuple(dict.fromkeys(Size().convert(text, None, None) for text in options["size"] or ())),
        precisions=options["precision"] or (),
        contestants=options["contestants"],
        devices=devices,
        threads=options["threads"] or available_threads(),
        rounds=options["rounds"],
        predictions=options["predictions"],
        folder_sizes=numbers["folder"],
        side=options["side"],
        recipe=options["recipe"],
        bases=numbers["bases"],
        trained=options["trained"],
        limit_s=options["limit"],
        limits=options["limits"],
        folder=folder,
        display=Display(),
    )
    plan = replace(plan, **QUICK) if options["quick"] else plan
    return replace(plan, **TRIAL) if is_trial() else plan


def images_in(data: Path | None) -> Sequence[Path]:
    """List the images of a folder, or of the validation images in it, or else of the training images.

    Raises:
        ImageError: there are none.
    """
    from runtime.image import list_images

    if data is None:
        return []
    folder = next((data / name for name in IMAGE_FOLDERS if (data / name).is_dir()), data)
    images = list_images(folder)
    if not images:
        raise ImageError(f"{folder}: no images in this folder")
    return images


def method_of(plan: BenchmarkPlan, budget_s: float | None) -> dict[str, str | int | float | bool]:
    """Tell the method for the results: rounds, threads, budget, and the options as given, of paths only the names."""
    context = click.get_current_context()
    words: list[str] = []
    for option in context.command.params:
        if context.get_parameter_source(str(option.name)) is not ParameterSource.COMMANDLINE:
            continue
        name, value = option.opts[0], context.params[str(option.name)]
        values = [
            one.name if isinstance(one, Path) else str(one.pixels if isinstance(one, Limits) else one)
            for one in (value if isinstance(value, tuple) else (value,))
        ]
        if value is True:
            words.append(name)
        elif option.multiple:
            words += [word for one in values for word in (name, one)]
        else:
            words += [*([name] if isinstance(option, click.Option) else []), ",".join(values)]
    found: dict[str, str | int | float | bool] = {"rounds": plan.rounds, "threads": plan.threads}
    if budget_s is not None:
        found["budget_s"] = budget_s
    return found | {"options": one_line(shlex.join(words))[:2000]}


def write_report(results: "Results", out: Path, *, replace_pictures: bool) -> None:
    """Write results.json, report.md and pictures into a folder; with `replace_pictures` an older run's are removed."""
    from benchmarks.reporting.plots import PICTURES, draw_pictures
    from benchmarks.reporting.report import markdown

    written = [results.write(out), out / "report.md", *draw_pictures(results, out)]
    links = "".join(f"\n![{path.stem}]({path.name})\n" for path in written[2:])
    write_text(out / "report.md", markdown(results) + links)
    for name in PICTURES if replace_pictures else ():
        if out / name not in written:
            (out / name).unlink(missing_ok=True)
    echo("\n".join(f"written: {path}" for path in written), err=True)


@contextmanager
def run_folder(out: Path | None, model: Path) -> Iterator[Path]:
    """Make the folder of a run, by default a new one. If the block ends by an error or Ctrl-C before anything is there,
    remove it again, unless it existed before.
    """
    existed = out is not None and out.is_dir()
    folder = new_folder(model) if out is None else make_folder(out)
    try:
        yield folder
    except BaseException:
        if not existed:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


def new_folder(model: Path) -> Path:
    """Create the folder of a run for which none was given: bench-MODEL, or the next free bench-MODEL-N.

    Runs that begin together get one each.

    Raises:
        OutputError: the current folder is not writable.
    """
    for folder in map(Path, chain([f"bench-{model.stem}"], (f"bench-{model.stem}-{number}" for number in count(2)))):
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError:
            pass  # of which `make_folder` tells
        return make_folder(folder)
    raise AssertionError("numbers do not end")
