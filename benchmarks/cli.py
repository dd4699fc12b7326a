"""unet-bench: one command for all parts; `unet-bench compare` for two runs."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import click

from benchmarks import cold, compare, latency, memory, parity, peaks, scaling, stages, throughput, tradeoff, training
from benchmarks.environment import environment
from benchmarks.peer import Arithmetic, Subject
from benchmarks.plots import draw
from benchmarks.report import markdown
from benchmarks.results import Measurement, Results, Settings, Skipped
from benchmarks.timing import MIN_ROUNDS, busy_cores, disturbance
from runtime.console import Command, Listed, Size, version_option
from runtime.errors import ConfigError, ImageError, UnetError, one_line
from runtime.files import make_folder, write_text
from runtime.image import list_images
from runtime.predictor import MAX_THREADS
from runtime.providers import available_threads, candidates, why_not
from unet_core.config import TrainConfig, read_settings
from unet_core.display import Display

Found = list[Measurement | Skipped]

IMAGE_FOLDERS = ("val_images", "val", "train_images", "train")
"""Of a data set, in the order in which they are looked for."""

LATENCY_SHARES = 5
"""How much more of the budget the latency gets than each other part, having a matrix of contestants and shapes."""

QUICK = {"rounds": MIN_ROUNDS, "predictions": 100, "folder_sizes": (8,), "side": 1024}
"""What --quick does less of: for a look, not for figures that are told to others."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for, of all parts."""

    subject: Subject
    data: Path | None
    images: Sequence[Path]
    batches: Sequence[int]
    sizes: Sequence[tuple[int, int]]
    precisions: Sequence[Arithmetic]
    peers: Sequence[str]
    device: str
    threads: int
    rounds: int
    predictions: int
    folder_sizes: Sequence[int]
    side: int
    recipe: Path | None
    bases: Sequence[int]
    limit_s: float
    work: Path
    display: Display
    peaks: list[Measurement] = field(default_factory=list)

    @property
    def image(self) -> Path | None:
        """The first real image."""
        return self.images[0] if self.images else None

    @property
    def common(self) -> dict[str, Any]:
        """What every part takes."""
        return {"threads": self.threads, "display": self.display}


def _peak(plan: Plan, _: float | None) -> Found:
    plan.display.note(f"peak: {plan.rounds} rounds")
    plan.peaks.extend(peaks.measure(threads=plan.threads, device="cpu", rounds=plan.rounds))
    gpu = "cuda" if plan.device == "auto" else plan.device
    if gpu != "cpu" and why_not(candidates(gpu)[0]) is None:
        plan.peaks.extend(peaks.measure(threads=plan.threads, device=gpu, rounds=plan.rounds))
    return [*plan.peaks]


def _latency(plan: Plan, budget_s: float | None) -> Found:
    return latency.measure(
        plan.subject,
        batches=plan.batches,
        sizes=plan.sizes or [plan.subject.card.input.size],
        precisions=plan.precisions,
        peers=plan.peers,
        device=plan.device,
        rounds=plan.rounds,
        budget_s=budget_s,
        peaks=plan.peaks,
        **plan.common,
    )


def _overhead(plan: Plan, budget_s: float | None) -> Found:
    return throughput.overhead(plan.subject.model, plan.image, rounds=plan.rounds, budget_s=budget_s, **plan.common)


def _stages(plan: Plan, _: float | None) -> Found:
    device = "cpu" if plan.device == "auto" else plan.device
    return stages.measure(plan.subject.model, plan.image, device=device, rounds=plan.rounds, **plan.common)


def _folder(plan: Plan, budget_s: float | None) -> Found:
    return throughput.folder(
        plan.subject.model,
        plan.subject.checkpoint,
        plan.images,
        folder_sizes=plan.folder_sizes,
        budget_s=budget_s and budget_s / len(plan.folder_sizes),
        **plan.common,
    )


def _cold(plan: Plan, budget_s: float | None) -> Found:
    return cold.measure(plan.subject.model, plan.image, rounds=plan.rounds, budget_s=budget_s, **plan.common)


def _memory(plan: Plan, _: float | None) -> Found:
    return memory.measure(plan.subject.model, predictions=plan.predictions, side=plan.side, **plan.common)


def _scaling(plan: Plan, budget_s: float | None) -> Found:
    return scaling.measure(plan.subject.model, rounds=plan.rounds, budget_s=budget_s, **plan.common)


def _parity(plan: Plan, _: float | None) -> Found:
    device = "cpu" if plan.device == "auto" else plan.device
    return parity.measure(plan.subject.model, plan.subject.checkpoint, plan.images, device=device, **plan.common)


def _trade_off(plan: Plan, _: float | None) -> Found:
    return tradeoff.measure(
        _config(plan), plan.work, bases=plan.bases, limit_s=plan.limit_s, rounds=plan.rounds, **plan.common
    )


def _training(plan: Plan, _: float | None) -> Found:
    return training.measure(_config(plan), rounds=plan.rounds, **plan.common)


PARTS: Mapping[str, Callable[[Plan, float | None], Found]] = {
    "peak": _peak,
    "latency": _latency,
    "overhead": _overhead,
    "stages": _stages,
    "folder": _folder,
    "cold-start": _cold,
    "memory": _memory,
    "scaling": _scaling,
    "parity": _parity,
    "training": _training,
    "trade-off": _trade_off,
}
"""All parts by their names on the command line, in the order in which they are measured; "memory" has the tiles too."""

ON_REQUEST = ("training", "trade-off")
"""Parts that train, and so are measured only where they are named."""


PARTS_HELP = f"Only these parts.  [default: all but {' and '.join(ON_REQUEST)}]"


def _config(plan: Plan) -> TrainConfig:
    """The settings of the runs of `ON_REQUEST`: the recipe's, of a network like the model's."""
    if plan.data is None:
        raise ConfigError("--data: is needed to train; give the folder with train_images/ and train_masks/")
    recipe = read_settings(plan.recipe) if plan.recipe is not None else {}
    own = {name: value for name, value in recipe.items() if name not in ("data", "out")}
    return training.config_like(plan.subject.card, plan.data, **own)


def measure(plan: Plan, parts: Iterable[str], budget_s: float | None = None) -> tuple[Measurement | Skipped, ...]:
    """Measure the parts in order; one that cannot be measured is `Skipped` with its reason, and does not stop the rest.

    Of the budget, in seconds, each part may take its share of what is left.
    """
    started, found = time.monotonic(), []
    chosen = [name for name in PARTS if name in set(parts)]
    for index, name in enumerate(chosen):
        left = None if budget_s is None else max(0.0, budget_s - (time.monotonic() - started))
        weights = [LATENCY_SHARES if other == "latency" else 1 for other in chosen[index:]]
        try:
            found += PARTS[name](plan, left and left * weights[0] / sum(weights))
        except (UnetError, OSError, MemoryError) as error:
            part = name.replace("-", " ") if name == "cold-start" else name
            reason = one_line(str(error))[:1000] or type(error).__name__
            found.append(Skipped(part=part, contestant="all", settings={}, reason=reason))
            plan.display.note(f"{part}: {reason}")
    return tuple(found)


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
    "--also", multiple=True, type=click.Path(path_type=Path), help="fp16 or int8 file of the same checkpoint."
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

    Exit code: 0, or 1 if answers are not PyTorch's.
    """
    if out is not None:
        make_folder(out)
    display = Display()
    busy_before = busy_cores()
    with tempfile.TemporaryDirectory() as scratch:
        plan = _planned(Subject.read(model, checkpoint, also), data, Path(scratch), asked, quick, display)
        found = measure(plan, parts or [name for name in PARTS if name not in ON_REQUEST], budget)
    results = Results(
        environment=environment(model),
        method=_method(plan, budget, quick),
        disturbance=disturbance(busy_before, busy_cores()),
        measurements=tuple(one for one in found if isinstance(one, Measurement)),
        skipped=tuple(one for one in found if isinstance(one, Skipped)),
    )
    click.echo(markdown(results))
    if out is not None:
        written = [results.write(out), out / "report.md", *draw(results, out)]
        write_text(out / "report.md", markdown(results) + _pictures(written))
        click.echo("\n".join(f"written: {path}" for path in written), err=True)
    parity.check(results.measurements)


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


def _planned(
    subject: Subject, data: Path | None, work: Path, asked: Mapping[str, Any], quick: bool, display: Display
) -> Plan:
    given = {
        "rounds": asked["rounds"],
        "predictions": asked["predictions"],
        "folder_sizes": asked["folder"],
        "side": asked["side"],
    }
    return Plan(
        subject=subject,
        data=data,
        images=images_in(data),
        batches=asked["batch"],
        sizes=[Size().convert(text, None, None) for text in asked["size"] or ()],
        precisions=asked["precision"] or (),
        peers=asked["peer"],
        device=asked["device"],
        threads=asked["threads"] or available_threads(),
        recipe=asked["recipe"],
        bases=asked["bases"],
        limit_s=asked["limit"],
        work=work,
        display=display,
        **(QUICK if quick else given),
    )


def _method(plan: Plan, budget_s: float | None, quick: bool) -> Settings:
    found: dict[str, str | int | float | bool] = {"rounds": plan.rounds, "threads": plan.threads, "quick": quick}
    return found if budget_s is None else {**found, "budget_s": budget_s}


def _pictures(written: Sequence[Path]) -> str:
    """Links to the pictures beside the report."""
    return "".join(f"\n![{path.stem}]({path.name})\n" for path in written if path.suffix == ".png")


def only(*parts: str) -> None:
    """`python -m benchmarks.latency MODEL ...` is `unet-bench MODEL ... --part latency`."""
    main([*sys.argv[1:], *(word for part in parts for word in ("--part", part))])
