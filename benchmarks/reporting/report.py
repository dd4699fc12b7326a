"""The report of a run: a table for each part, what was skipped and why, and what all was measured on."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from benchmarks.reporting.tables import (
    NONE,
    cell,
    environment_lines,
    in_unit,
    number,
    percent_of,
    shown_ratio,
    shown_settings,
    table,
    varying,
)
from benchmarks.results import HIGHER, PARTS, UNITS, Measurement, Results, Skipped, ratio_of

HOW = ("precision", "device", "threads")
"""Settings that say how the work is done; all others say what the work is."""

TIMES = ("ms", "s")
SPEEDS = (*TIMES, "images/s")

NOTES: Mapping[str, str] = {
    "latency": "One batch of uint8 pixels in host memory to its probabilities in host memory. GFLOP/s count the "
    "graph's operations, so an algorithm that does fewer (Winograd's) can exceed the peak of a matrix product. Errors "
    "are of probabilities, against PyTorch on the CPU, or against ONNX Runtime where no checkpoint was given.",
    "layers": "Each convolution, one image, by ONNX Runtime's profile; GFLOP/s count the operations of the convolution "
    "as it is. The sum is of the medians, and has the profiler's own time in it.",
    "overhead": "What the runtime costs around the session.",
    "stages": "Where the time of one prediction goes: medians in ms.",
    "folder": "Image files to PNG masks on disk. The plain script resizes and writes PNG by PyTorch and Pillow; the "
    "script with our decoding, resizing and PNG differs from predict in a loop by the network alone.",
    "cold start": "One image file to its mask on disk, with all files in the page cache: from the start of a fresh "
    "process to its end, and as one request to a process that stays open.",
    "loading": "A file in a fresh process that has imported its libraries: until it is open, with its golden sample "
    "replayed, and until its first image is answered. MB at the peak, beyond the process before it.",
    "memory": "Resident memory of the whole process after each tenth of its predictions, in MB.",
    "tiles": "One large image; MB at the peak, beyond the process before it.",
    "scaling": "Cost against size; peak MB beyond the loaded network, of what needs more than its weights do. "
    "Cost = scale x size ^ exponent.",
    "trade-off": "Accuracy against speed: each width trained once, with the same settings and seed. A CPU computes an "
    "fp16 file in fp32, with weights that are rounded; what a GPU loses, which rounds values too, is in the gate.",
    "parity": "How far answers are from PyTorch's: the largest error of a probability, and the share of pixels whose "
    "class differs; each of the image where it is worst.",
    "training": "The trainer against a bare PyTorch loop with the same network on the same pictures.",
    "peak": "The best round of what the machine did in the same run: the fastest matrix product, and a copy that is "
    "larger than its caches.",
}

Column = tuple[str, Callable[[Measurement], str]]
"""The head of a column, and what it shows of a measurement."""

METHOD = (
    "Contestants of a table took turns. Ratios are medians over the rounds, with intervals of at least 90 %; the "
    "spread is the interquartile range over the median; with fewer than 100 rounds, p99 is near the slowest one."
)

FACTS: Mapping[str, tuple[str, str]] = {
    "peak_share": ("of the peak", "share"),
    "epochs": ("epochs", ""),
    "trained_s": ("trained in s", "s"),
    "file_mb": ("file in MB", "MB"),
    "gate_passed": ("passes its gate", ""),
    "gate_image_dice": ("Dice in the gate", "Dice"),
    "max_abs_error": ("largest error", "error"),
    "compile_s": ("compiled in s", "s"),
    "provider": ("runs on", ""),
}
"""Facts that tables show where they are given: their heads, and the units that they are written in."""


def framed(body: Iterable[str], disturbance: str | None, environment: dict[str, object]) -> str:
    """Lines of Markdown between what makes them doubtful, if anything does, and what they were measured on."""
    versions = environment["versions"]
    assert isinstance(versions, dict)
    warning = [f"**Not a measurement**: {disturbance}.", ""] if disturbance else []
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([*warning, *body, f"{environment['cpu']}, {environment['cores']} cores; {shown}"])


def markdown(results: Results) -> str:
    """All of a run as Markdown."""
    environment = results.environment
    lines = [f"# Benchmarks of {cell(_subject(results))}", ""]
    if results.disturbance:
        lines += [f"**Not a measurement**: {cell(results.disturbance)}.", ""]
    how = f"; {cell(shown_settings(results.method))}" if results.method else ""
    lines += [f"Measured on {_machine(results)}{how}.", "", METHOD, ""]
    for part in PARTS:
        lines += _section(part, results)
    return "\n".join([*lines, "## Environment", "", *environment_lines(environment)]) + "\n"


def _subject(results: Results) -> str:
    """The card's name with what the network is, and the file's name."""
    found = results.environment
    named = [str(found[name]) for name in ("card", "network") if found.get(name)]
    file = str(found.get("model", "this machine"))
    return f"{', '.join(named)} ({file})" if named else file


def _machine(results: Results) -> str:
    found = results.environment
    gpu = f", {found['gpu']}" if found.get("gpu") else ""
    return cell(f"{found.get('cpu')}, {found.get('cores')} cores{gpu}")


def _section(part: str, results: Results) -> list[str]:
    measured, skipped = results.of(part), [one for one in results.skipped if one.part == part]
    if not measured and not skipped:
        return []
    lines = [f"## {part[0].upper()}{part[1:]}", ""]
    if measured:
        lines += [NOTES[part], "", *SECTIONS[part](measured), ""]
    return lines + _skipped(skipped)


def _skipped(skipped: Sequence[Skipped]) -> list[str]:
    if not skipped:
        return []
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in skipped:
        reasons.setdefault((one.contestant, one.reason), []).append(shown_settings(one.settings))
    lines = [
        f"- {cell(contestant)}{_where(places)}: {cell(reason)}" for (contestant, reason), places in reasons.items()
    ]
    return ["Skipped:", "", *lines, ""]


def _where(places: Sequence[str]) -> str:
    named = [place for place in places if place]
    if len(named) > 3:
        return f" ({len(named)} times, first {cell(named[0])})"
    return f" ({cell('; '.join(named))})" if named else ""


def _contest(measured: Sequence[Measurement]) -> list[str]:
    """A table for each work and unit, in which contestants are compared with the first that took turns with them."""
    varied = varying(measured)
    how, machines = [name for name in varied if name in HOW], len({machine_of(one) for one in measured})
    works: dict[str, list[Measurement]] = {}
    for one in measured:
        work = _settings_of(one, [name for name in varied if name not in HOW])
        places = [work, machine_of(one)] if machines > 1 else [work]
        works.setdefault(", ".join(filter(None, places)), []).append(one)
    lines = _common(measured)
    for work, together in works.items():
        lines += [f"**{cell(work)}**", ""] if work else []
        for unit in dict.fromkeys(one.unit for one in together):
            rivals = [one for one in together if one.unit == unit]
            columns = [*_names(how), *_figures(rivals, how), *_facts(rivals)]
            lines += [*_shown(columns, rivals), ""]
    return lines[:-1]


def _common(measured: Sequence[Measurement]) -> list[str]:
    """The settings that all have, in a line."""
    varied = varying(measured)
    common = _settings_of(measured[0], [name for name in measured[0].settings if name not in varied])
    return [f"All with {cell(common)}.", ""] if common else []


def _settings_of(one: Measurement, names: Sequence[str]) -> str:
    return shown_settings({name: value for name, value in one.settings.items() if name in names})


def _shown(columns: Sequence[Column], rows: Sequence[Measurement]) -> list[str]:
    return table([head for head, _ in columns], [[show(one) for _, show in columns] for one in rows])


def _names(how: Sequence[str]) -> list[Column]:
    return [("contestant", lambda one: one.contestant), *((name, partial(_setting, name)) for name in how)]


def _setting(name: str, one: Measurement) -> str:
    return str(one.settings.get(name, NONE))


def _figures(rivals: Sequence[Measurement], how: Sequence[str]) -> list[Column]:
    """The median; of several values also how much they spread, of times the slow calls; the ratio; GFLOP/s."""
    reference = rivals[0]
    columns: list[Column] = [(f"{reference.unit} >", _median)]
    if any(len(one.values) > 1 for one in rivals):
        slow: list[Column] = [("p90 >", lambda one: number(one.p90)), ("p99 >", lambda one: number(one.p99))]
        columns += slow if reference.unit in TIMES else []
        columns.append(("spread >", lambda one: percent_of(100 * one.spread)))
        columns.append(("rounds >", lambda one: str(len(one.values))))
    if len(rivals) > 1 and reference.unit in SPEEDS:
        name = ", ".join([reference.contestant, *([_setting("precision", reference)] if "precision" in how else [])])
        columns.append((f"times as fast as {name} >", partial(_speed_up, reference)))
    if any(achieved(one) is not None for one in rivals):
        columns.append(("GFLOP/s >", lambda one: number(achieved(one) or math.nan)))
    return columns


def _median(one: Measurement) -> str:
    return in_unit(one.median, one.unit)


def _speed_up(reference: Measurement, one: Measurement) -> str:
    """How many times as fast as the reference it is, with its interval; above 1 is faster."""
    if one is reference or one.group != reference.group or not one.group:
        return "1" if one is reference else NONE
    return shown_ratio(ratio_of(one, reference) if UNITS[one.unit] == HIGHER else ratio_of(reference, one))


def achieved(one: Measurement) -> float | None:
    """GFLOP/s by the operations that the graph counts; None where they or the time are not known."""
    work = one.facts.get("gflop")
    if one.unit not in TIMES or not isinstance(work, int | float) or not one.median:
        return None
    return work / (one.median / 1e3 if one.unit == "ms" else one.median)


def machine_of(one: Measurement) -> str:
    """What the work is done by: "cpu", where nothing else is said, or "gpu"."""
    return "cpu" if one.settings.get("device", "cpu") == "cpu" else "gpu"


def _facts(rows: Sequence[Measurement]) -> list[Column]:
    columns: list[Column] = []
    for name, (head, unit) in FACTS.items():
        if any(name in one.facts for one in rows):
            columns.append((f"{head} >" if unit else head, partial(_fact, name, unit)))
    return columns


def _fact(name: str, unit: str, one: Measurement) -> str:
    value = one.facts.get(name, NONE)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, str) or not unit else in_unit(float(value), unit)


def _pivot(measured: Sequence[Measurement]) -> list[str]:
    """A row for each contestant with its settings, a column for each unit."""
    varied = varying(measured)
    units = list(dict.fromkeys(one.unit for one in measured))
    rows: dict[tuple[str, str], dict[str, Measurement]] = {}
    for one in measured:
        settings = _settings_of(one, varied)
        rows.setdefault((one.contestant, settings), {})[one.unit] = one
    columns = _facts(measured)
    heads = ["contestant", "with", *(f"{unit} >" for unit in units), *(head for head, _ in columns)]
    shown = []
    for names, row in rows.items():
        facts = {name: value for one in row.values() for name, value in one.facts.items()}
        whole = replace(next(iter(row.values())), facts=facts)
        values = [_median(row[unit]) if unit in row else NONE for unit in units]
        shown.append([*names, *values, *(show(whole) for _, show in columns)])
    if all(settings in ("", contestant) for contestant, settings in rows):
        heads, shown = [heads[0], *heads[2:]], [[row[0], *row[2:]] for row in shown]
    return [*_common(measured), *table(heads, shown)]


def _stages(measured: Sequence[Measurement]) -> list[str]:
    """A row for each size, a column for each stage."""
    stages = list(dict.fromkeys(one.contestant for one in measured))
    varied = varying(measured)
    rows: dict[str, dict[str, float]] = {}
    for one in measured:
        settings = _settings_of(one, varied)
        rows.setdefault(settings, {})[one.contestant] = one.median
    shown = [
        [settings, *(number(row[stage]) if stage in row else NONE for stage in stages), number(sum(row.values()))]
        for settings, row in rows.items()
    ]
    return [*_common(measured), *table(["image", *(f"{stage} >" for stage in stages), "sum >"], shown)]


def _memory(measured: Sequence[Measurement]) -> list[str]:
    """In the order of the predictions: what grows and does not stop is a leak."""
    rows = [
        [one.contestant, shown_settings(one.settings), *map(number, (one.values[0], one.values[-1], max(one.values)))]
        for one in measured
    ]
    return table(["contestant", "with", "first >", "last >", "largest >"], rows)


def _layers(measured: Sequence[Measurement]) -> list[str]:
    """A row for each layer, with a time for each file and how many times as fast as the first one it is."""
    names = list(dict.fromkeys(one.contestant for one in measured))
    rows: dict[str, dict[str, Measurement]] = {}
    for one in measured:
        rows.setdefault(str(one.settings.get("layer", NONE)), {})[one.contestant] = one
    heads, shown = ["layer", "GFLOP >"], []
    for name in names:
        heads += [f"{name}, ms >", "GFLOP/s >", *([] if name == names[0] else ["form", "times as fast >"])]
    for layer, row in rows.items():
        first = row[names[0]]
        cells = [layer, number(float(first.facts.get("gflop", math.nan)))]
        for name in names:
            one = row[name]
            cells += [_median(one), number(achieved(one) or math.nan)]
            if name != names[0]:
                cells += [str(one.facts.get("form", NONE)), _speed_up(first, one) if first.median else NONE]
        shown.append(cells)
    sums = ["sum", ""]
    for name in names:
        sums += [number(sum(row[name].median for row in rows.values())), "", *([] if name == names[0] else ["", ""])]
    return [*_common(measured), *table(heads, [*shown, sums])]


def _parity(measured: Sequence[Measurement]) -> list[str]:
    """The worst of all images counts; facts say it again."""
    return _pivot([replace(one, values=(max(one.values),), facts={}) for one in measured])


def _peak(measured: Sequence[Measurement]) -> list[str]:
    """The best round counts."""
    return _pivot([replace(one, values=(max(one.values),)) for one in measured])


def _scaling(measured: Sequence[Measurement]) -> list[str]:
    """The sweep, and a line for each curve that was fitted to it."""
    fits = [one for one in measured if one.unit == "exponent"]
    sweep = [one for one in measured if one.unit != "exponent"]
    lines = _pivot(sweep) if sweep else []
    return [*lines, *([""] if sweep and fits else []), *(f"- {_fitted(one)}" for one in fits)]


def _fitted(one: Measurement) -> str:
    low, high = one.interval
    interval = f" ({low:.3f} to {high:.3f} by the rounds)" if low > 0 else ""
    miss = one.facts.get("miss")
    off = f", off by at most {percent_of(100 * miss)}" if isinstance(miss, float) else ""
    of, over = one.settings.get("of", "ms"), one.settings.get("over", "pixels")
    return f"{cell(one.contestant)}, {of} over {over}: exponent {one.median:.3f}{interval}{off}."


SECTIONS: Mapping[str, Callable[[Sequence[Measurement]], list[str]]] = {
    **dict.fromkeys(PARTS, _contest),
    "stages": _stages,
    "memory": _memory,
    "scaling": _scaling,
    "trade-off": _pivot,
    "parity": _parity,
    "layers": _layers,
    "loading": _pivot,
    "peak": _peak,
}
