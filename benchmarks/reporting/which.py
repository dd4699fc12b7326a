"""The tables of which file to take, and in which engine to run it."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.reporting.tables import (
    MISSING,
    in_unit,
    markdown_table,
    ratio_text,
    settings_text,
    three_digits,
    varying,
)
from benchmarks.results import Measurement, Results, ratio_of

PART = "which"

Place = tuple[object, object, object]
"""First width, file and engine."""


def by_place(measured: Iterable[Measurement]) -> dict[Place, dict[str, Measurement]]:
    """Sort measurements by width, file and engine, then by unit."""
    found: dict[Place, dict[str, Measurement]] = {}
    for one in measured:
        place = one.settings.get("base"), one.settings.get("file"), one.contestant
        found.setdefault(place, {})[one.unit] = one
    return found


def times_as_fast(one: Measurement, of: Mapping[Place, Mapping[str, Measurement]]) -> str:
    """Write how many times as fast a file is as the fp32 file of its network in ONNX Runtime."""
    reference = of.get((one.settings.get("base"), "fp32", "ONNX Runtime"), {}).get("ms")
    if reference is None or reference.group != one.group:
        return MISSING
    return "1" if one is reference else ratio_text(ratio_of(reference, one))


def widths_text(one: Measurement) -> str:
    """Write all widths of a network, or the first one if that alone is known."""
    return str(one.facts.get("widths", one.settings.get("base", MISSING)))


def which_table(measured: Sequence[Measurement]) -> list[str]:
    """A row for each width, file and engine."""
    found = by_place(measured)
    varied = varying(measured)
    common = [name for name in measured[0].settings if name not in (*varied, "base", "file", "device")]
    rows, random = [], dict[str, None]()
    for (_, kind, engine), units in found.items():
        one = next(iter(units.values()))
        random |= {widths_text(one): None} if one.facts.get("weights") == "random weights" else {}
        cells = [in_unit(units[unit].median, unit) if unit in units else MISSING for unit in ("ms", "Dice", "MB")]
        faster = times_as_fast(units["ms"], found) if "ms" in units else MISSING
        file_mb = one.facts.get("file_mb")
        size = three_digits(file_mb) if isinstance(file_mb, int | float) else MISSING
        auto = "auto" if one.facts.get("auto") is True else ""
        rows.append([widths_text(one), str(kind), str(engine), auto, cells[0], faster, cells[1], size, cells[2]])
    heads = [
        "widths",
        "file",
        "in",
        "",
        "ms >",
        "times as fast as fp32 in ONNX Runtime >",
        "image Dice >",
        "file in MB >",
    ]
    lines = [f"All with {settings_text(measured[0].settings, common)}.", "", *markdown_table([*heads, "MB >"], rows)]
    if random:
        lines += ["", f"Random weights, so without Dice: {'; '.join(random)}."]
    return lines


def short_table(results: Results) -> list[str]:
    """A row for each file and engine, a column for each width, for the documentation: times as fast, and Dice."""
    found = by_place(results.of(PART))
    heads = {base: widths_text(next(iter(units.values()))) for (base, _, _), units in found.items()}
    ways = list(dict.fromkeys((kind, engine) for _, kind, engine in found))
    rows = []
    for kind, engine in ways:
        row = [f"{kind} in {engine}"]
        for base in heads:
            units = found.get((base, kind, engine), {})
            speed = times_as_fast(units["ms"], found).partition(" ")[0] if "ms" in units else MISSING
            dice = f", {in_unit(units['Dice'].median, 'Dice')}" if "Dice" in units else ""
            row.append(speed + dice)
        rows.append(row)
    return markdown_table(["file and engine", *(f"{head} >" for head in heads.values())], rows)
