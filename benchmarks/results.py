"""The results of a run of the benchmarks: one record for each measurement, all of them in one file, `results.json`.

Records check themselves when they are made, so a file that was written can be read again. docs/benchmarks.md describes
the file. Numpy only: reading and comparing results needs neither PyTorch nor ONNX Runtime.
"""

import json
import math
import os
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring.intervals import DRAWS, median_interval, ratio
from benchmarks.measuring.rounds import MIN_ROUNDS
from runtime.errors import ConfigError
from runtime.support.files import make_folder, write_text
from runtime.support.validation import FieldChecks

SCHEMA = 1
FILE_NAME = "results.json"
MAX_BYTES = 64 * 2**20
MAX_RECORDS = 100_000
MAX_VALUES = 10_000
MAX_ENTRIES = 200
MAX_TEXT = 2_000

PARTS = (
    "latency",
    "layers",
    "overhead",
    "stages",
    "folder",
    "loading",
    "cold start",
    "memory",
    "tiles",
    "scaling",
    "trade-off",
    "which",
    "parity",
    "training",
    "peak",
)
"""The parts in the order of a report; parts that are not named here follow."""

LOWER, HIGHER = "lower", "higher"
UNITS = {
    "ms": LOWER,
    "s": LOWER,
    "MB": LOWER,
    "error": LOWER,
    "share": LOWER,
    "exponent": LOWER,
    "images/s": HIGHER,
    "GFLOP/s": HIGHER,
    "GB/s": HIGHER,
    "Dice": HIGHER,
}
"""Units, and which of their values are better.

"error" is the largest difference of two probabilities, "share" the share of pixels whose class differs, 0 to 1.
"""

Scalar = str | int | float | bool
Settings = Mapping[str, Scalar]
Environment = Mapping[str, Scalar | Settings | None]

CHECK = FieldChecks(ConfigError, "results field ")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One figure, measured once a round.

    Attributes:
        part: the part of `unet-bench` that measured it; one of `PARTS`, or a new one.
        contestant: the way to do the work that was measured.
        settings: the work: batch, height, width, threads, ...
        unit: one of `UNITS`.
        values: one for each round, in order.
        group: a text that contestants share if they were measured alternately, so that round i of one is paired with
            round i of the others; "" for a contestant that was measured alone.
        facts: further figures that belong to it: gflop, provider, max_abs_error, ...

    Raises:
        ConfigError: a field is invalid; the message names it.
    """

    part: str
    contestant: str
    settings: Settings
    unit: str
    values: tuple[float, ...]
    group: str = ""
    facts: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_line("measurements.part", self.part)
        _check_line("measurements.contestant", self.contestant)
        _check_settings("measurements.settings", self.settings)
        CHECK.choice("measurements.unit", self.unit, tuple(UNITS))
        CHECK.length("measurements.values", self.values, 1, MAX_VALUES)
        for value in self.values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
                raise CHECK.refusal("measurements.values", value, "finite numbers from 0")
        _check_line("measurements.group", self.group, shortest=0)
        _check_settings("measurements.facts", self.facts)

    @property
    def key(self) -> tuple[str, str, str, frozenset[tuple[str, Scalar]]]:
        """Part, contestant, unit and settings; no two measurements of a run have the same key."""
        return self.part, self.contestant, self.unit, frozenset(self.settings.items())

    @property
    def median(self) -> float:
        """The median of the values, in `unit`."""
        return float(np.percentile(self.values, 50))

    @property
    def p90(self) -> float:
        """The 90th percentile of the values, in `unit`."""
        return float(np.percentile(self.values, 90))

    @property
    def p99(self) -> float:
        """The 99th percentile of the values, in `unit`; with fewer than 100 values it is near the largest."""
        return float(np.percentile(self.values, 99))

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the median's interval of at least 90 %, in `unit`; 0 and infinity with too few values."""
        return median_interval(np.array(self.values, np.float64))

    @property
    def spread(self) -> float:
        """The interquartile range over the median; 0 if the median is 0."""
        low, high = np.percentile(self.values, [25, 75])
        return float(high - low) / self.median if self.median else 0.0


def measurements_of(
    rounds: Mapping[str, NDArray[np.float64]],
    *,
    part: str,
    settings: Settings,
    unit: str,
    group: str = "",
    facts: Settings | None = None,
) -> list[Measurement]:
    """Make a measurement of each contestant from the values [rounds] of all of them, as `interleave` returns them."""
    return [
        Measurement(
            part=part,
            contestant=contestant,
            settings=settings,
            unit=unit,
            values=tuple(values.tolist()),
            group=group,
            facts=facts or {},
        )
        for contestant, values in rounds.items()
    ]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Work that was asked for and not measured, and the reason in one line."""

    part: str
    contestant: str
    settings: Settings
    reason: str

    def __post_init__(self) -> None:
        _check_line("skipped.part", self.part)
        _check_line("skipped.contestant", self.contestant)
        _check_settings("skipped.settings", self.settings)
        _check_line("skipped.reason", self.reason)


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One value over another: the median, and the ends of its 90 % interval (0 and infinity if nothing is known)."""

    median: float
    low: float
    high: float

    @property
    def excludes_one(self) -> bool:
        """True if the interval leaves no doubt that the two values differ."""
        return self.low > 1 or self.high < 1


def ratio_of(measured: Measurement, reference: Measurement) -> Ratio:
    """Divide the values of `measured` by those of `reference`.

    If both have the same group and number of values, the ratio is taken round by round; else it is that of the medians.
    """
    ours, theirs = np.array(measured.values, np.float64), np.array(reference.values, np.float64)
    paired = measured.group == reference.group != "" and len(ours) == len(theirs)
    if not paired or len(ours) < MIN_ROUNDS or not divisible(ours, theirs):
        return ratio_of_medians(ours, theirs)
    median, low, high = ratio(ours, theirs)
    return Ratio(median=median, low=low, high=high)


def ratio_of_medians(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Ratio:
    """Divide the median of `ours` [n] by that of `theirs` [m].

    The interval is the middle 90 % of bootstraps, in which the rounds of both are drawn with replacement. There is none
    with fewer than `MIN_ROUNDS` values, or with values that are not `divisible`.
    """
    top, bottom = float(np.median(ours)), float(np.median(theirs))
    median = top / bottom if bottom else 1.0 if top == bottom else math.inf
    if min(len(ours), len(theirs)) < MIN_ROUNDS or not divisible(ours, theirs):
        return Ratio(median=median, low=0.0, high=math.inf)
    random = np.random.default_rng(0)
    tops, bottoms = (np.median(random.choice(each, (DRAWS, len(each))), axis=1) for each in (ours, theirs))
    low, high = np.percentile(tops / bottoms, [5, 95])
    return Ratio(median=median, low=float(low), high=float(high))


def divisible(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> bool:
    """Return True if all of `ours` [n] and `theirs` [m] are above 0, and all ratios of one to another finite."""
    least = float(theirs.min())
    return min(float(ours.min()), least) > 0 and math.isfinite(float(ours.max()) / least)


@dataclass(frozen=True, kw_only=True)
class Results:
    """All measurements of a run, the machine and software it ran on (`environment`) and its options (`method`).

    `disturbance` is the reason, in one line, why the times are doubtful; None if there is none.

    Raises:
        ConfigError: a field is invalid, or two measurements have the same key.
    """

    environment: Environment
    method: Settings
    disturbance: str | None
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...] = ()
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_schema(self.schema)
        _check_settings("environment", self.environment, nested=True)
        _check_settings("method", self.method)
        if self.disturbance is not None:
            _check_line("disturbance", self.disturbance)
        CHECK.length("measurements", self.measurements, 0, MAX_RECORDS)
        CHECK.length("skipped", self.skipped, 0, MAX_RECORDS)
        seen = set()
        for one in self.measurements:
            if one.key in seen:
                found = f"{one.part}, {one.contestant}, {dict(one.settings)} in {one.unit} twice"
                raise ConfigError(f"results field measurements: found {found}, expected each once; name the difference")
            seen.add(one.key)

    def of(self, part: str) -> tuple[Measurement, ...]:
        """Return the measurements of one part, in order."""
        return tuple(one for one in self.measurements if one.part == part)

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write `results.json` into a folder, which is made if it does not exist, and return the file's path.

        Raises:
            OutputError: the file cannot be written.
        """
        path = make_folder(folder) / FILE_NAME
        write_text(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")
        return path

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Results":
        """Read a file that `write` wrote, or the one in a folder, and check every field.

        Raises:
            ConfigError: the file cannot be read, is not JSON, or a field is missing, unknown or invalid.
        """
        file = Path(path)
        file = file / FILE_NAME if file.is_dir() else file
        try:
            with open(file, "rb") as opened:
                content = opened.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ConfigError(f"{file}: has more than {MAX_BYTES} bytes, expected results of unet-bench")
            data = json.loads(content)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"{file}: cannot be read ({reason}), expected results of unet-bench") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{file}: is not JSON ({error}), expected results of unet-bench") from error
        try:
            return _record_of(cls, data)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error


def _record_of(record: type[T], data: Any, where: str = "") -> T:
    """Make a record from decoded JSON, which must have exactly the record's fields; lists become tuples."""
    if not isinstance(data, dict):
        raise CHECK.refusal(where or "(the whole file)", data, "a record")
    if record is Results:
        check_schema(data.get("schema"))  # first: newer files may have other fields
    prefix = f"{where}." if where else ""
    known = {item.name for item in fields(record)}  # type: ignore[arg-type]
    for name in sorted(known - data.keys()):
        raise ConfigError(f"results field {prefix}{name}: is missing; measure again")
    for name in sorted(data.keys() - known):
        raise ConfigError(f"results field {prefix}{reprlib.repr(name)}: is unknown; measure again")
    values = dict(data)
    for name, value in data.items():
        nested: type | None = {"measurements": Measurement, "skipped": Skipped}.get(prefix + name)
        if isinstance(value, list):
            values[name] = tuple(_record_of(nested, item, name) if nested else item for item in value)
    return record(**values)


def check_schema(schema: object) -> None:
    """Refuse every version of the file's format but this one."""
    if type(schema) is not int or schema != SCHEMA:
        raise CHECK.refusal("schema", schema, f"{SCHEMA}; if it is newer, upgrade unet-deploy")


def _check_line(name: str, value: object, *, shortest: int = 1) -> None:
    """Refuse everything but one line of text."""
    if not isinstance(value, str) or not shortest <= len(value) <= MAX_TEXT or not value.isprintable():
        raise CHECK.refusal(name, value, f"one line of {shortest} to {MAX_TEXT} characters")


def _check_settings(name: str, value: Any, *, nested: bool = False) -> None:
    """Refuse everything but a record of scalars; with `nested`, its values may also be None or such records."""
    CHECK.mapping(name, value, MAX_ENTRIES, MAX_TEXT)
    for key, one in value.items():
        _check_line(name, key)
        if isinstance(one, str):
            _check_line(f"{name}.{key}", one, shortest=0)
        elif nested and isinstance(one, Mapping):
            _check_settings(f"{name}.{key}", one)
        elif not (nested and one is None) and (not isinstance(one, bool | int | float) or not -1e18 < one < 1e18):
            raise CHECK.refusal(f"{name}.{key}", one, "a text, a finite number, true or false")
