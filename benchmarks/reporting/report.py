"""The report of a run: tables for each part, what was skipped and why, and the environment of the measurements."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from benchmarks.reporting.goals import goal_lines
from benchmarks.reporting.roof import above_lines, above_peak, achieved
from benchmarks.reporting.tables import (
    MISSING,
    escaped,
    in_unit,
    markdown_table,
    percent,
    ratio_text,
    settings_text,
    three_digits,
    varying,
)
from benchmarks.reporting.which import which_table
from benchmarks.results import HIGHER, PARTS, UNITS, Measurement, Results, Settings, Skipped, ratio_of

HOW = ("precision", "device", "threads")
"""Settings of the way in which the work is done; all other settings describe the work."""

TIMES = ("ms", "s")
SPEEDS = (*TIMES, "images/s")

NOTES: Mapping[str, str] = {
    "latency": "The time from one batch of uint8 pixels in host memory to its probabilities in host memory. GFLOP/s "
    "count the graph's operations, so an algorithm that needs fewer (Winograd's) can exceed the peak. "
    "Errors are those of probabilities, against PyTorch on the CPU, or against ONNX Runtime if no checkpoint "
    "was given.",
    "layers": "The time of each convolution for one image, by ONNX Runtime's profile. GFLOP/s count the operations of "
    "the plain convolution, whatever its form. The sum is that of the medians, and includes the profiler's own time.",
    "overhead": "The time of one image in a bare session, and with the work of the runtime around it.",
    "stages": "The time of each stage of one prediction: medians in ms.",
    "folder": "From image files to PNG masks on disk. The plain script resizes and writes PNG with PyTorch and Pillow; "
    "the script with our decoding, resizing and PNG differs from predict in a loop only by the network.",
    "cold start": "From one image file to its mask on disk, with all files in the page cache: from the start of a "
    "fresh process to its end, and as one request to a process that stays open.",
    "loading": "Each file in a fresh process that has imported its libraries: seconds until the file is open and its "
    "golden sample replayed, and until its first image is predicted. MB are the peak, beyond the memory before it.",
    "memory": "The resident memory of the whole process after each tenth of its predictions, in MB.",
    "tiles": "One large image. MB are the peak, beyond the memory of the process before it.",
    "scaling": "Cost against size. Peak MB are those beyond the loaded network, for shapes that need more memory than "
    "its weights. Cost = scale x size ^ exponent.",
    "trade-off": "Accuracy against speed: each width was trained once, with the same settings and seed. A CPU computes "
    "an fp16 file in fp32, with rounded weights; a GPU rounds values too, and the gate measures what that loses.",
    "which": "Each export of a network, in both engines, with one image as trained; all of a width took turns. bf16 is "
    "the fp32 file, whose card permits it. MB are the peak of a process until its first answer, beyond its libraries. "
    '"auto" marks the engine that device="auto" takes for the file on this machine.',
    "parity": "The difference from PyTorch's answers: the largest error of a probability, and the share of pixels "
    "whose class differs. Each figure is that of the image where it is largest.",
    "training": "The trainer against a bare PyTorch loop with the same network on the same images.",
    "serving": "Image files sent over HTTP by clients on this machine, and masks as PNG sent back, against as many "
    "tasks in one process. ms are those of an answer, waiting included; MB are those of all of the server's processes.",
    "peak": "The best round of the machine in the same run: of the fastest of many products and convolutions, by "
    "PyTorch and by ONNX Runtime, and of a copy that is larger than the caches.",
}
"""The paragraph above the tables of each part."""

METHOD = (
    "The contestants of a table alternated, round by round. Ratios are medians over the rounds, with intervals of at "
    "least 90 %. The spread is the interquartile range over the median. With fewer than 100 rounds, p99 is near the "
    "slowest one."
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
    "by": ("by", ""),
    "answers": ("answers", ""),
    "refused": ("refused (429)", ""),
}
"""Facts that tables show if a measurement has them: the head, and the unit in which the value is written."""


def markdown(results: Results) -> str:
    """Write all results of a run as Markdown."""
    environment = results.environment
    names = ", ".join(str(environment[name]) for name in ("card", "network") if environment.get(name))
    file = str(environment.get("model", "this machine"))
    lines = [f"# Benchmarks of {escaped(f'{names} ({file})' if names else file)}", ""]
    if results.disturbance:
        lines += [f"**Not a measurement**: {escaped(results.disturbance)}.", ""]
    gpu = f", {environment['gpu']}" if environment.get("gpu") else ""
    machine = f"{environment.get('cpu')}, {environment.get('cores')} cores{gpu}"
    method = f"; {escaped(settings_text(results.method))}" if results.method else ""
    lines += [f"Measured on {escaped(machine)}{method}.", "", METHOD, ""]
    lines += goal_lines(results)
    found = (*(one.part for one in results.measurements), *(one.part for one in results.skipped))
    for part in dict.fromkeys((*PARTS, *found)):
        measured, skipped = results.of(part), [one for one in results.skipped if one.part == part]
        if measured or skipped:
            lines += [f"## {part[0].upper()}{part[1:]}", ""]
        if measured:
            note = [NOTES[part], ""] if part in NOTES else []
            lines += [*note, *PART_TABLES.get(part, contest_tables)(measured), ""]
            lines += above_lines(above_peak(results)) if part == "peak" else []
        if skipped:
            lines += ["Skipped:", "", *skipped_lines(skipped), ""]
    lines += ["## Environment", ""]
    for name, value in environment.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        lines.append(f"- {name.replace('_', ' ')}: {MISSING if value is None else escaped(str(value))}")
    return "\n".join(lines) + "\n"


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """Return a line for each contestant and reason, with the settings that were skipped, or the first of many."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in skipped:
        reasons.setdefault((one.contestant, one.reason), []).append(settings_text(one.settings))
    lines = []
    for (contestant, reason), works in reasons.items():
        named = [work for work in works if work]
        which = f"{len(named)} times, first {named[0]}" if len(named) > 3 else "; ".join(named)
        lines.append(f"- {escaped(contestant)}{f' ({escaped(which)})' if which else ''}: {escaped(reason)}")
    return lines


def machine_of(one: Measurement) -> str:
    """Return the processor that does the work: "cpu", if the settings name no other device, or "gpu"."""
    return "cpu" if one.settings.get("device", "cpu") == "cpu" else "gpu"


def contest_tables(measured: Sequence[Measurement]) -> list[str]:
    """A table for each work and unit, in which contestants are compared with the first one of their group."""
    varied = varying(measured)
    how, work_names = [name for name in varied if name in HOW], [name for name in varied if name not in HOW]
    several_machines = len({machine_of(one) for one in measured}) > 1
    works: dict[str, list[Measurement]] = {}
    for one in measured:
        words = (settings_text(one.settings, work_names), machine_of(one) if several_machines else "")
        works.setdefault(", ".join(filter(None, words)), []).append(one)
    lines = common_settings(measured)
    for work, together in works.items():
        lines += [f"**{escaped(work)}**", ""] if work else []
        for unit in dict.fromkeys(one.unit for one in together):
            lines += [*contest_table([one for one in together if one.unit == unit], how), ""]
    return lines[:-1]


def contest_table(rivals: Sequence[Measurement], how: Sequence[str]) -> list[str]:
    """A row for each contestant: `how` it works, median, slow calls and spread of its rounds, ratio, GFLOP/s, facts."""
    reference = rivals[0]
    several = any(len(one.values) > 1 for one in rivals)
    compared = len(rivals) > 1 and reference.unit in SPEEDS
    counted = any(achieved(one) is not None for one in rivals)
    precision = [str(reference.settings.get("precision", MISSING))] if "precision" in how else []
    rows = []
    for one in rivals:
        row = {"contestant": one.contestant} | {name: str(one.settings.get(name, MISSING)) for name in how}
        row[f"{one.unit} >"] = in_unit(one.median, one.unit)
        if several and one.unit in TIMES and "percentile" not in one.settings:
            row |= {"p90 >": three_digits(one.p90), "p99 >": three_digits(one.p99)}
        if several:
            row |= {"spread >": percent(100 * one.spread), "rounds >": str(len(one.values))}
        if compared:
            row[f"times as fast as {', '.join([reference.contestant, *precision])} >"] = speed_up(reference, one)
        if counted:
            row["GFLOP/s >"] = three_digits(achieved(one) or math.nan)
        rows.append(row | fact_cells(one.facts, rivals))
    return rows_table(rows)


def speed_up(reference: Measurement, one: Measurement) -> str:
    """Write how many times as fast as the reference `one` is, with the interval; above 1 is faster."""
    if one is reference or one.group != reference.group or not one.group:
        return "1" if one is reference else MISSING
    return ratio_text(ratio_of(one, reference) if UNITS[one.unit] == HIGHER else ratio_of(reference, one))


def fact_cells(facts: Settings, rows: Sequence[Measurement]) -> dict[str, str]:
    """Return the cells of one row's facts, by head, for all `FACTS` that any of the rows has."""
    cells = {}
    for name, (head, unit) in FACTS.items():
        value = facts.get(name, MISSING)
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif unit and not isinstance(value, str):
            value = in_unit(value, unit)
        if any(name in one.facts for one in rows):
            cells[f"{head} >" if unit else head] = str(value)
    return cells


def rows_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """A table of rows that have the same heads."""
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows])


def common_settings(measured: Sequence[Measurement]) -> list[str]:
    """A line with the settings that all have, and an empty one; nothing if they have none."""
    varied = varying(measured)
    common = settings_text(measured[0].settings, [name for name in measured[0].settings if name not in varied])
    return [f"All with {escaped(common)}.", ""] if common else []


def pivot_table(measured: Sequence[Measurement]) -> list[str]:
    """A row for each contestant with its settings, a column for each unit."""
    varied = varying(measured)
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for one in measured:
        groups.setdefault((one.contestant, settings_text(one.settings, varied)), []).append(one)
    distinguished = any(settings not in ("", contestant) for contestant, settings in groups)
    rows = []
    for (contestant, settings), group in groups.items():
        row = {"contestant": contestant} | ({"with": settings} if distinguished else {})
        medians = {one.unit: in_unit(one.median, one.unit) for one in group}
        row |= {f"{unit} >": medians.get(unit, MISSING) for unit in dict.fromkeys(one.unit for one in measured)}
        facts = {name: value for one in group for name, value in one.facts.items()}
        rows.append(row | fact_cells(facts, measured))
    return [*common_settings(measured), *rows_table(rows)]


def stage_table(measured: Sequence[Measurement]) -> list[str]:
    """A row for each image size, a column for each stage."""
    varied = varying(measured)
    images: dict[str, dict[str, float]] = {}
    for one in measured:
        images.setdefault(settings_text(one.settings, varied), {})[one.contestant] = one.median
    rows = []
    for image, times in images.items():
        stages = dict.fromkeys(one.contestant for one in measured)
        cells = {f"{stage} >": three_digits(times.get(stage, math.nan)) for stage in stages}
        rows.append({"image": image} | cells | {"sum >": three_digits(sum(times.values()))})
    return [*common_settings(measured), *rows_table(rows)]


def memory_table(measured: Sequence[Measurement]) -> list[str]:
    """Memory in the order of the predictions: memory that keeps growing shows a leak."""
    rows = [
        [one.contestant, settings_text(one.settings)]
        + [three_digits(value) for value in (one.values[0], one.values[-1], max(one.values))]
        for one in measured
    ]
    return markdown_table(["contestant", "with", "first >", "last >", "largest >"], rows)


def layer_table(measured: Sequence[Measurement]) -> list[str]:
    """A row for each layer, with the time of each file and its ratio to the first file's time."""
    first, *others = dict.fromkeys(one.contestant for one in measured)
    layers: dict[str, dict[str, Measurement]] = {}
    for one in measured:
        layers.setdefault(str(one.settings.get("layer", MISSING)), {})[one.contestant] = one
    heads, sums = ["layer", "GFLOP >", f"{first}, ms >", "GFLOP/s >"], ["sum", ""]
    for name in others:
        heads += [f"{name}, ms >", "GFLOP/s >", "form", "times as fast >"]
    rows = []
    for layer, found in layers.items():
        reference = found[first]
        row = [layer, three_digits(float(reference.facts.get("gflop", math.nan)))]
        for name in (first, *others):
            one = found[name]
            row += [in_unit(one.median, one.unit), three_digits(achieved(one) or math.nan)]
            if name != first:
                faster = speed_up(reference, one) if reference.median else MISSING
                row += [str(one.facts.get("form", MISSING)), faster]
        rows.append(row)
    for name in (first, *others):
        total = sum(found[name].median for found in layers.values())
        sums += [three_digits(total), "", *([] if name == first else ["", ""])]
    return [*common_settings(measured), *markdown_table(heads, [*rows, sums])]


def scaling_table(measured: Sequence[Measurement]) -> list[str]:
    """The costs of all sizes, and a line for each curve that was fitted to them."""
    sweep = [one for one in measured if one.unit != "exponent"]
    fits = [one for one in measured if one.unit == "exponent"]
    lines = pivot_table(sweep) if sweep else []
    lines += [""] if sweep and fits else []
    for one in fits:
        low, high = one.interval
        interval = f" ({low:.3f} to {high:.3f} by the rounds)" if low > 0 else ""
        miss = one.facts.get("miss")
        off = f", off by at most {percent(100 * miss)}" if isinstance(miss, float) else ""
        cost = f"{one.settings.get('of', 'ms')} over {one.settings.get('over', 'pixels')}"
        lines.append(f"- {escaped(one.contestant)}, {cost}: exponent {one.median:.3f}{interval}{off}.")
    return lines


def largest_table(measured: Sequence[Measurement]) -> list[str]:
    """A pivot table of the largest values: the best round of a machine, the worst image of an answer."""
    return pivot_table([replace(one, values=(max(one.values),)) for one in measured])


PART_TABLES: Mapping[str, Callable[[Sequence[Measurement]], list[str]]] = {
    "stages": stage_table,
    "memory": memory_table,
    "scaling": scaling_table,
    "trade-off": pivot_table,
    "which": which_table,
    "parity": lambda measured: largest_table([replace(one, facts={}) for one in measured]),  # they repeat the figures
    "layers": layer_table,
    "loading": pivot_table,
    "peak": largest_table,
}
"""The function that writes the tables of each part."""
