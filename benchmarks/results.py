"""What a run of the benchmarks measured: one record for each figure, all of them in one file, `results.json`.

Records check themselves when they are made, so what is written can be read again. The file's schema is told in
docs/benchmarks.md. Numpy only: reading and comparing results needs neither PyTorch nor ONNX Runtime.
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

from benchmarks.measuring.timing import DRAWS, MIN_ROUNDS, median_interval, ratio
from runtime.errors import ConfigError
from runtime.support.files import make_folder, write_text

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
    "parity",
    "training",
    "peak",
)
"""What can be measured, in the order of a report."""

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
"""Units, and which values are better; "error" is the largest difference of probabilities, "share" one of pixels."""

Scalar = str | int | float | bool
Settings = Mapping[str, Scalar]
Environment = Mapping[str, Scalar | Settings | None]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One figure, measured once a round.

    `part`, `contestant`, `settings` (what was asked: batch, height, width, threads, ...) and `unit` name it. `values`
    are in the order of the rounds. Contestants that were measured in turns have the same `group`, so round i of one is
    paired with round i of the others; "" is alone. `facts` follow or belong to it: gflop, provider, max_abs_error, ...

    Raises:
        ConfigError: a field is absurd; the message names it.
    """

    part: str
    contestant: str
    settings: Settings
    unit: str
    values: tuple[float, ...]
    group: str = ""
    facts: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        _choice("measurements.part", self.part, PARTS)
        _text("measurements.contestant", self.contestant, 1)
        _settings("measurements.settings", self.settings)
        _choice("measurements.unit", self.unit, UNITS)
        _length("measurements.values", self.values, 1, MAX_VALUES)
        for value in self.values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
                raise _refusal("measurements.values", value, "finite numbers from 0")
        _text("measurements.group", self.group, 0)
        _settings("measurements.facts", self.facts)

    @property
    def key(self) -> tuple[str, str, str, frozenset[tuple[str, Scalar]]]:
        """Part, contestant, unit and settings: no two measurements of a run have the same."""
        return self.part, self.contestant, self.unit, frozenset(self.settings.items())

    @property
    def median(self) -> float:
        """Of the values, in `unit`."""
        return self._percentile(50)

    @property
    def p90(self) -> float:
        """The 90th percentile of the values, in `unit`."""
        return self._percentile(90)

    @property
    def p99(self) -> float:
        """The 99th percentile of the values, in `unit`; with fewer than 100 values it is near the largest."""
        return self._percentile(99)

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the median's interval of at least 90 %, in `unit`; 0 and infinity with too few values."""
        return median_interval(np.array(self.values, np.float64))

    @property
    def spread(self) -> float:
        """Interquartile range over median; 0 where the median is 0."""
        return (self._percentile(75) - self._percentile(25)) / self.median if self.median else 0.0

    def _percentile(self, percent: int) -> float:
        return float(np.percentile(self.values, percent))


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """What was asked and not measured, and why, in one line."""

    part: str
    contestant: str
    settings: Settings
    reason: str

    def __post_init__(self) -> None:
        _choice("skipped.part", self.part, PARTS)
        _text("skipped.contestant", self.contestant, 1)
        _settings("skipped.settings", self.settings)
        _text("skipped.reason", self.reason, 1)


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times another value: median, and the ends of the 90 % interval (0 and infinity: nothing is known)."""

    median: float
    low: float
    high: float

    @property
    def excludes_one(self) -> bool:
        """Whether the interval leaves no doubt that the two differ."""
        return self.low > 1 or self.high < 1


def ratio_of(measured: Measurement, reference: Measurement) -> Ratio:
    """How many times `reference` the values of `measured` are.

    Where both have the same group and number of values, the ratio is taken round by round; else it is that of the
    medians.
    """
    ours, theirs = np.array(measured.values, np.float64), np.array(reference.values, np.float64)
    paired = measured.group == reference.group != "" and len(ours) == len(theirs)
    if not paired or len(ours) < MIN_ROUNDS or not divisible(ours, theirs):
        return ratio_of_medians(ours, theirs)
    median, low, high = ratio(ours, theirs)
    return Ratio(median=median, low=low, high=high)


def ratio_of_medians(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Ratio:
    """The median of `ours` [n] over that of `theirs` [m], with the middle 90 % of bootstraps, each with its own draws.

    Fewer than `MIN_ROUNDS` values, or some that are not `divisible`, give no interval.
    """
    top, bottom = float(np.median(ours)), float(np.median(theirs))
    median = top / bottom if bottom else 1.0 if top == bottom else math.inf
    if min(len(ours), len(theirs)) < MIN_ROUNDS or not divisible(ours, theirs):
        return Ratio(median=median, low=0.0, high=math.inf)
    random = np.random.default_rng(0)
    low, high = np.percentile(_medians(ours, random) / _medians(theirs, random), [5, 95])
    return Ratio(median=median, low=float(low), high=float(high))


def divisible(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> bool:
    """Whether all of `ours` [n] and `theirs` [m] are above 0, and all ratios of one to another finite."""
    least = float(theirs.min())
    return min(float(ours.min()), least) > 0 and math.isfinite(float(ours.max()) / least)


def _medians(values: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """The medians [draws] of as many values, drawn with replacement."""
    return np.asarray(np.median(random.choice(values, (DRAWS, len(values))), axis=1))


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that one run measured, what it ran on (`environment`) and how (`method`: rounds, threads, ...).

    `disturbance` says in one line what makes the times doubtful, or is None.

    Raises:
        ConfigError: a field is absurd, or two measurements have the same name.
    """

    environment: Environment
    method: Settings
    disturbance: str | None
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...] = ()
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if type(self.schema) is not int or self.schema != SCHEMA:
            raise _refusal("schema", self.schema, f"{SCHEMA}; if it is newer, upgrade unet-deploy")
        _mapping("environment", self.environment)
        for name, value in self.environment.items():
            if isinstance(value, Mapping):
                _settings(f"environment.{name}", value)
            elif value is not None:
                _scalar(f"environment.{name}", value)
        _settings("method", self.method)
        if self.disturbance is not None:
            _text("disturbance", self.disturbance, 1)
        _length("measurements", self.measurements, 0, MAX_RECORDS)
        _length("skipped", self.skipped, 0, MAX_RECORDS)
        seen = set()
        for one in self.measurements:
            if one.key in seen:
                found = f"{one.part}, {one.contestant}, {dict(one.settings)} in {one.unit} twice"
                raise ConfigError(f"results field measurements: found {found}, expected each once; name the difference")
            seen.add(one.key)

    def of(self, part: str) -> tuple[Measurement, ...]:
        """The measurements of one part, in order."""
        return tuple(one for one in self.measurements if one.part == part)

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write `results.json` into a folder, which is made if need be; returns its path.

        Raises:
            OutputError: it cannot be written.
        """
        path = make_folder(folder) / FILE_NAME
        write_text(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")
        return path

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Results":
        """Read what `write` wrote, from the file or its folder, checking every field.

        Raises:
            ConfigError: there is no such file, it is not such a file, or a field is missing, unknown or absurd.
        """
        file = Path(path)
        file = file / FILE_NAME if file.is_dir() else file
        try:
            return _record(cls, _load(file), "")
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error


def _load(file: Path) -> Any:
    try:
        with open(file, "rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ConfigError(f"cannot be read ({reason}), expected results of unet-bench") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"has more than {MAX_BYTES} bytes, expected results of unet-bench")
    try:
        return json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not JSON ({error}), expected results of unet-bench") from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


T = TypeVar("T")
_NESTED: Mapping[str, type] = {"measurements": Measurement, "skipped": Skipped}


def _record(cls: type[T], data: Any, where: str) -> T:
    """Make a dataclass of decoded JSON: exactly its fields, lists as tuples, records by `_NESTED`."""
    if not isinstance(data, dict):
        raise _refusal(where or "(the whole file)", data, "a record")
    known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    if not where and data.get("schema") != SCHEMA:
        raise _refusal("schema", data.get("schema"), f"{SCHEMA}; if it is newer, upgrade unet-deploy")
    for name in sorted(known - data.keys()):
        raise ConfigError(f"results field {prefix}{name}: is missing; measure again")
    for name in sorted(data.keys() - known):
        raise ConfigError(f"results field {prefix}{reprlib.repr(name)}: is unknown; measure again")
    return cls(**{name: _decoded(value, prefix + name) for name, value in data.items()})


def _decoded(value: Any, where: str) -> Any:
    if not isinstance(value, list):
        return value
    nested = _NESTED.get(where)
    return tuple(_record(nested, item, where) if nested else item for item in value)


def _refusal(name: str, found: object, expected: str) -> ConfigError:
    return ConfigError(f"results field {name}: found {reprlib.repr(found)}, expected {expected}")


def _choice(name: str, value: object, allowed: tuple[str, ...] | Mapping[str, str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise _refusal(name, value, f"one of {', '.join(allowed)}")


def _text(name: str, value: object, shortest: int) -> None:
    if not isinstance(value, str) or not shortest <= len(value) <= MAX_TEXT or not value.isprintable():
        raise _refusal(name, value, f"one line of {shortest} to {MAX_TEXT} characters")


def _length(name: str, value: object, shortest: int, longest: int) -> None:
    if not isinstance(value, tuple) or not shortest <= len(value) <= longest:
        raise _refusal(name, value, f"a list of {shortest} to {longest}")


def _mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping) or len(value) > MAX_ENTRIES:
        raise _refusal(name, value, f"a record of at most {MAX_ENTRIES} entries")
    for key in value:
        _text(name, key, 1)


def _settings(name: str, value: object) -> None:
    _mapping(name, value)
    assert isinstance(value, Mapping)
    for key, one in value.items():
        _scalar(f"{name}.{key}", one)


def _scalar(name: str, value: object) -> None:
    if isinstance(value, str):
        _text(name, value, 0)
    elif not isinstance(value, bool | int | float) or not -1e18 < value < 1e18:
        raise _refusal(name, value, "a text, a finite number, true or false")
