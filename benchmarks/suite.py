"""The parts of `unet-bench`, one entry for each, and measuring them one after the other.

To add a part, write its file in cases/ and add its entry to `PARTS`. Nothing heavy is imported here, since --help lists
the parts.
"""

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import requires
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from runtime.commands.entry import missing_text
from runtime.errors import ConfigError, UnetError, one_line
from runtime.image_files.limits import MAX_PIXELS

if TYPE_CHECKING:
    from benchmarks.contestants.base import Arithmetic, BenchmarkModel
    from benchmarks.results import Measurement, Skipped
    from runtime.image_files.limits import Limits
    from unet_core.config import TrainConfig
    from unet_core.model_options import NetworkOptions
    from unet_core.reporting.progress import Display

LATENCY_SHARES = 5
"""Shares of the budget for the latency, which has many contestants and shapes; every other part has one share."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """Everything that parts may be asked for; the options of `unet-bench`, checked."""

    benchmark_model: "BenchmarkModel"
    data: Path | None
    images: Sequence[Path]
    batches: Sequence[int]
    sizes: Sequence[tuple[int, int]]
    precisions: Sequence["Arithmetic"]
    contestants: Sequence[str]
    devices: str
    threads: int
    rounds: int
    predictions: int
    folder_sizes: Sequence[int]
    side: int
    recipe: Path | None
    bases: Sequence[int]
    trained: Sequence[Path]
    limit_s: float
    folder: Path
    display: "Display"
    limits: "Limits"
    budget_s: float | None = None
    peaks: Sequence["Measurement | Skipped"] = ()

    @property
    def model(self) -> Path:
        """The fp32 .onnx file."""
        return self.benchmark_model.path

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint that the model was exported from."""
        return self.benchmark_model.checkpoint

    @property
    def network(self) -> "NetworkOptions":
        """The options that make the checkpoint's network."""
        return self.benchmark_model.network

    @property
    def image(self) -> Path | None:
        """The first real image."""
        return self.images[0] if self.images else None

    @property
    def device(self) -> str:
        """The device of parts that run on one: the CPU, unless another was asked for."""
        return "cpu" if self.devices == "auto" else self.devices

    @property
    def config(self) -> "TrainConfig":
        """The settings of parts that train: the recipe's, for a network like the model's.

        Raises:
            ConfigError: there is no data to train on, or a setting is invalid.
        """
        from benchmarks.cases.training import config_like
        from unet_core.settings_file import read_settings

        if self.data is None:
            raise ConfigError("--data: is needed to train; give the folder with train_images/ and train_masks/")
        recipe = read_settings(self.recipe) if self.recipe is not None else {}
        settings = {name: value for name, value in recipe.items() if name not in ("data", "out")}
        if self.limits.pixels != MAX_PIXELS:
            settings["max_pixels"] = self.limits.pixels
        if self.devices != "auto":
            settings["device"] = self.devices
        return config_like(self.benchmark_model.card, self.data, **settings)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of `unet-bench`.

    Attributes:
        name: its name after --part.
        function: the function that measures it, "module:function"; imported when the part is measured.
        takes: the fields and properties of `BenchmarkPlan` that are keyword arguments of the function, in addition to
            `threads` and `display`, which every part takes.
        cpu_only: True if it measures the CPU alone, whatever other devices there are.
        on_request: True if it is measured only where it is named, because it trains or exports.
        results: its names in results.json, if it has others than `name`.
    """

    name: str
    function: str
    takes: tuple[str, ...]
    cpu_only: bool = False
    on_request: bool = False
    results: tuple[str, ...] = ()

    def measure(self, plan: BenchmarkPlan) -> list["Measurement | Skipped"]:
        """Call the function with what it takes of the plan."""
        arguments = {name: getattr(plan, name) for name in (*self.takes, "threads", "display")}
        found: list[Measurement | Skipped] = resolve_name(self.function)(**arguments)
        return found

    def skipped(self, reason: str) -> list["Measurement | Skipped"]:
        """The entries in the results for a part that was not measured."""
        from benchmarks.results import Skipped

        names = self.results or (self.name,)
        return [Skipped(part=name, contestant="all", settings={}, reason=reason) for name in names]


PARTS: Mapping[str, Part] = {
    part.name: part
    for part in (
        Part(name="peak", function="benchmarks.cases.peaks:measure", takes=("devices", "rounds", "budget_s")),
        Part(
            name="latency",
            function="benchmarks.cases.latency:measure",
            takes=(
                "benchmark_model",
                "batches",
                "sizes",
                "precisions",
                "contestants",
                "devices",
                "rounds",
                "budget_s",
                "peaks",
            ),
        ),
        Part(
            name="layers",
            function="benchmarks.cases.layers:measure",
            takes=("benchmark_model", "rounds", "budget_s"),
            cpu_only=True,
        ),
        Part(
            name="overhead",
            function="benchmarks.cases.overhead:measure",
            takes=("benchmark_model", "image", "limits", "rounds", "budget_s"),
            cpu_only=True,
        ),
        Part(
            name="stages",
            function="benchmarks.cases.stages:measure",
            takes=("model", "image", "limits", "device", "rounds", "budget_s"),
        ),
        Part(
            name="folder",
            function="benchmarks.cases.folder:measure",
            takes=("benchmark_model", "images", "limits", "folder_sizes", "budget_s"),
            cpu_only=True,
        ),
        Part(
            name="loading",
            function="benchmarks.cases.loading:measure",
            takes=("benchmark_model", "rounds", "budget_s"),
            cpu_only=True,
        ),
        Part(
            name="cold-start",
            function="benchmarks.cases.cold:measure",
            takes=("model", "image", "limits", "rounds", "budget_s"),
            cpu_only=True,
            results=("cold start",),
        ),
        Part(
            name="memory",
            function="benchmarks.cases.memory:measure",
            takes=("model", "predictions", "side", "budget_s"),
            cpu_only=True,
            results=("memory", "tiles"),
        ),
        Part(
            name="scaling",
            function="benchmarks.cases.scaling:measure",
            takes=("model", "rounds", "budget_s"),
            cpu_only=True,
        ),
        Part(
            name="parity",
            function="benchmarks.cases.parity:measure",
            takes=("model", "checkpoint", "network", "images", "limits", "device"),
        ),
        Part(
            name="training", function="benchmarks.cases.training:measure", takes=("config", "rounds"), on_request=True
        ),
        Part(
            name="trade-off",
            function="benchmarks.cases.tradeoff:measure",
            takes=("config", "folder", "bases", "limit_s", "device", "rounds"),
            on_request=True,
        ),
        Part(
            name="which",
            function="benchmarks.cases.which:measure",
            takes=("benchmark_model", "folder", "data", "trained", "bases", "limits", "rounds", "budget_s"),
            cpu_only=True,
            on_request=True,
        ),
    )
}
"""All parts by name, in the order in which they are measured."""


def extra_of(module: str) -> str | None:
    """Return the extra of this package that installs a module; None if there is none.

    What training or export need is all in "export".
    """
    name = module.partition(".")[0]
    for requirement in requires("unet-deploy") or ():
        found = re.match(r"(?P<package>[\w.-]+).*extra == [\"'](?P<extra>\w+)", requirement)
        if found and found["package"].replace("-", "_") == name:
            return "export" if found["extra"] in ("train", "bench") else found["extra"]
    return None


def measure_parts(
    plan: BenchmarkPlan, names: Collection[str], budget_s: float | None = None
) -> Iterator[list["Measurement | Skipped"]]:
    """Measure parts in order; one that fails is `Skipped` with its reason, and the others go on.

    With a budget, in seconds, each part may take its share of what is left.

    Yields:
        The results of each part.
    """
    started = time.monotonic()
    parts = [part for part in PARTS.values() if part.name in names]
    for index, part in enumerate(parts):
        if budget_s is not None:
            left = budget_s - (time.monotonic() - started)
            if left <= 0:
                yield part.skipped("nothing of the budget is left")
                continue
            shares = [LATENCY_SHARES if other.name == "latency" else 1 for other in parts[index:]]
            plan = replace(plan, budget_s=left * shares[0] / sum(shares))
        if part.cpu_only and plan.devices not in ("auto", "cpu"):
            yield part.skipped("is measured on the CPU; give --device cpu, or auto for both")
            continue
        try:
            found = part.measure(plan)
        except Exception as error:  # libraries' errors share no base class, and hours of other parts hang on this one
            text = one_line(str(error))[:1000]
            if isinstance(error, ModuleNotFoundError):
                text = missing_text(error, extra_of(str(error.name)))
            reason = text if isinstance(error, UnetError | ModuleNotFoundError) else f"{type(error).__name__}: {text}"
            plan.display.note(f"{part.name}: {reason}")
            found = part.skipped(reason)
        if part.name == "peak":
            plan = replace(plan, peaks=found)
        yield found
