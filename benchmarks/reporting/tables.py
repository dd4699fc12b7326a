"""Numbers, settings and tables as the reports write them."""

import math
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.results import Environment, Measurement, Ratio, Scalar, Settings

NONE = "-"
"""Where there is no figure."""

WORDLESS = {"precision", "device"}
"""Settings whose value says what it is."""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown; a head that ends in ">" is of numbers, which stand right. Cells are escaped."""
    titles, right = [head.removesuffix(">").strip() for head in heads], [head.endswith(">") for head in heads]
    columns = list(zip(*[[cell(text) for text in row] for row in [titles, *rows]], strict=True))
    padded = [_padded(column, to_right) for column, to_right in zip(columns, right, strict=True)]
    rules = [
        "-" * (len(cells[0]) + 1) + (":" if to_right else "-") for cells, to_right in zip(padded, right, strict=True)
    ]
    lines = [f"| {' | '.join(row)} |" for row in zip(*padded, strict=True)]
    return [lines[0], f"|{'|'.join(rules)}|", *lines[1:]]


def _padded(column: Sequence[str], to_right: bool) -> list[str]:
    width = max(3, *map(len, column))
    return [text.rjust(width) if to_right else text.ljust(width) for text in column]


def cell(text: str) -> str:
    """Text that neither ends a cell nor becomes markup."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def number(value: float) -> str:
    """Three significant digits, without an exponent as long as it can be read: 0.00123, 1.2, 355, 12,300,000."""
    if not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    size = math.floor(math.log10(abs(rounded)))
    return f"{value:.1e}" if size < -4 else f"{rounded:,.{max(0, 2 - size)}f}"


def percent_of(value: float) -> str:
    """A value in percent: "0.52 %"; less than a millionth of a percent is none."""
    return f"{number(round(value, 6))} %"


def in_unit(value: float, unit: str) -> str:
    """A value as its unit is read: Dice with four digits, shares in percent, errors as powers of ten."""
    if unit == "Dice":
        return f"{value:.4f}"
    if unit == "share":
        return percent_of(100 * value)
    return f"{value:.1e}" if unit == "error" else number(value)


def shown_ratio(ratio: Ratio) -> str:
    """ "1.42 (1.38 to 1.47)"; the median alone where nothing is known of the interval."""
    median = "∞" if math.isinf(ratio.median) else f"{ratio.median:.2f}"
    return f"{median} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio.low > 0 else median


def shown_settings(settings: Settings) -> str:
    """One line of settings: "batch 1, 240x160, cpu, threads 2"; sizes are width x height."""
    settings = dict(settings)
    words = []
    if {"height", "width"} <= settings.keys():
        words.append(size_of(settings))
        settings = {name: value for name, value in settings.items() if name not in ("height", "width")}
    return ", ".join(words + [_setting(name, value) for name, value in settings.items()])


def _setting(name: str, value: Scalar) -> str:
    return str(value) if name in WORDLESS else f"{name} {value}"


def size_of(settings: Settings) -> str:
    """ "240x160", width x height."""
    return f"{settings['width']}x{settings['height']}"


def varying(measurements: Sequence[Measurement]) -> list[str]:
    """The settings that are not the same in all of these."""
    names = dict.fromkeys(name for one in measurements for name in one.settings)
    return [name for name in names if len({one.settings.get(name) for one in measurements}) > 1]


def environment_lines(environment: Environment) -> list[str]:
    """A line for each fact; versions in one."""
    lines = []
    for name, value in environment.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        lines.append(f"- {name.replace('_', ' ')}: {NONE if value is None else cell(str(value))}")
    return lines
