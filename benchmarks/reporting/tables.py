"""Numbers, settings and tables as the reports write them."""

import math
from collections.abc import Collection, Iterable, Sequence

from benchmarks.results import Measurement, Ratio, Settings

MISSING = "-"
"""The text of a cell without a figure."""

WORDLESS = {"precision", "device"}
"""Settings whose value needs no name before it."""


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown, with escaped cells.

    A head that ends in ">" stands over numbers, which are aligned to the right.
    """
    titles, are_numbers = [head.removesuffix(">").strip() for head in heads], [head.endswith(">") for head in heads]
    lines = [[escaped(text) for text in row] for row in [titles, *rows]]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    columns = list(zip(widths, are_numbers, strict=True))
    rule = "|".join("-" * (width + 1) + (":" if is_number else "-") for width, is_number in columns)
    padded = [
        " | ".join(
            text.rjust(width) if is_number else text.ljust(width)
            for text, (width, is_number) in zip(line, columns, strict=True)
        )
        for line in lines
    ]
    return [f"| {padded[0]} |", f"|{rule}|", *(f"| {line} |" for line in padded[1:])]


def escaped(text: str) -> str:
    """Return text that neither ends a cell nor becomes markup."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def three_digits(value: float) -> str:
    """Write a number with three significant digits, and with an exponent only below 0.0001: 0.00123, 1.20, 12,300."""
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    size = math.floor(math.log10(abs(rounded)))
    return f"{value:.1e}" if size < -4 else f"{rounded:,.{max(0, 2 - size)}f}"


def percent(value: float) -> str:
    """Write a number of percent, "0.52 %"; less than a millionth of a percent becomes 0."""
    return f"{three_digits(round(value, 6))} %"


def in_unit(value: float, unit: str) -> str:
    """Write a value as its unit is read: Dice with four digits, shares in percent, errors as powers of ten."""
    if unit == "Dice":
        return f"{value:.4f}"
    if unit == "share":
        return percent(100 * value)
    return f"{value:.1e}" if unit == "error" else three_digits(value)


def ratio_text(ratio: Ratio) -> str:
    """Write a ratio as "1.42 (1.38 to 1.47)", or its median alone if nothing is known of the interval."""
    median = "∞" if math.isinf(ratio.median) else f"{ratio.median:.2f}"
    return f"{median} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio.low > 0 else median


def settings_text(settings: Settings, names: Collection[str] | None = None) -> str:
    """Write settings, or only those with these names, in one line: "240x160, batch 1, cpu" (width x height first)."""
    left = {name: value for name, value in settings.items() if names is None or name in names}
    words = []
    if {"height", "width"} <= left.keys():
        words.append(f"{left.pop('width')}x{left.pop('height')}")
    return ", ".join(words + [str(value) if name in WORDLESS else f"{name} {value}" for name, value in left.items()])


def varying(measurements: Sequence[Measurement]) -> list[str]:
    """Return the names of the settings that differ among these measurements."""
    names = dict.fromkeys(name for one in measurements for name in one.settings)
    return [name for name in names if len({one.settings.get(name) for one in measurements}) > 1]
