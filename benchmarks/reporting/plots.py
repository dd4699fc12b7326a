"""The pictures of a run as PNG files: latency, roofline, scaling, stages, accuracy against speed."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmarks.contestants.registry import contestants_on
from benchmarks.reporting.report import TIMES, machine_of
from benchmarks.reporting.roof import achieved
from benchmarks.reporting.tables import settings_text, three_digits, varying
from benchmarks.results import Measurement, Results
from runtime.devices.device import CPU_DEVICE
from runtime.support.files import make_folder, replacing

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7F3C8D",
    "#8C564B",
    "#7F7F7F",
    "#BCBD22",
    "#1B4F72",
    "#A93226",
)
MARKERS = "osD^vPX*<>ph"
INK, GREY, WARNING = "#202020", "#808080", "#B00020"
DPI = 150

KNOWN = tuple(each.name for each in contestants_on(CPU_DEVICE) if each.precision == "fp32")
"""Contestants that have the same colour in all pictures."""


def draw_pictures(results: Results, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw the pictures that there are measurements for, write each of them atomically, and return their paths.

    Below each picture stand the machine, the network, and the reason why the times are doubtful, if there is one.

    Raises:
        OutputError: a file cannot be written.
    """
    kinds = dict.fromkeys(map(machine_of, results.measurements))
    names = [str(results.environment.get(kind)) for kind in ("cpu", "gpu") if kind in kinds]
    network = [results.environment[name] for name in ("card", "network", "model") if results.environment.get(name)]
    origin = "; ".join([*names, ", ".join(map(str, network))])
    doubt = f"\nNot a measurement: {results.disturbance}" if results.disturbance else ""
    target, written = make_folder(folder), []
    with matplotlib.rc_context({"text.parse_math": False}):  # or a "$" in a text would begin a formula
        for name, picture in PICTURES.items():
            figure = picture(results)
            if figure is None:
                continue
            figure.supxlabel(origin + doubt, fontsize=8, color=WARNING if doubt else GREY)
            with replacing(target / name) as temporary:
                figure.savefig(temporary, dpi=DPI)
            written.append(target / name)
    return written


def draw_latency(results: Results) -> Figure | None:
    """Draw medians as bars with 90 % intervals: a row of panels for each machine and size, a column for each batch."""
    measured = [one for one in results.of("latency") if one.unit == "ms" and {"height", "width"} <= one.settings.keys()]
    if not measured:
        return None
    machines = {name: [one for one in measured if machine_of(one) == name] for name in map(machine_of, measured)}
    names = {one.key: distinct_name(one, together) for together in machines.values() for one in together}
    colours = assigned([*KNOWN, *names.values()], PALETTE)
    batches = sorted({count_of(one, "batch") for one in measured})
    rows: dict[tuple[str, str], list[Measurement]] = {}
    for one in measured:
        rows.setdefault((machine_of(one), settings_text(one.settings, ("height", "width"))), []).append(one)
    high = [0.9 + 0.28 * len({names[one.key] for one in row}) for row in rows.values()]
    figure = Figure(figsize=(3.4 + 3.2 * len(batches), 0.7 + sum(high)), layout="constrained")
    panels = figure.subplots(len(rows), len(batches), squeeze=False, sharey="row", height_ratios=high)
    for line, ((machine, size), row) in zip(panels, rows.items(), strict=True):
        bars = {name: colours[name] for name in dict.fromkeys(names[one.key] for one in row)}
        for axes, batch in zip(line, batches, strict=True):
            draw_bars(axes, {names[one.key]: one for one in row if count_of(one, "batch") == batch}, bars)
            axes.set_title(f"{size}, batch {batch}, {machine}", fontsize=10)
    figure.suptitle("Latency in ms, lower is better: medians with 90 % intervals")
    return figure


def draw_bars(axes: Axes, found: Mapping[str, Measurement], bars: Mapping[str, str]) -> None:
    """Draw a line for each name of `bars`, and on it a bar in its colour if the name was found."""
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_ylim(len(bars) - 0.4, -0.6)
    if not found:
        axes.set_frame_on(False)
        axes.xaxis.set_major_locator(FixedLocator([]))
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", fontsize=8, color=GREY)
        return
    across = axes.get_yaxis_transform()
    for place, (name, colour) in enumerate(bars.items()):
        if name not in found:
            axes.text(0.01, place, "not measured", transform=across, va="center", fontsize=8, color=GREY)
            continue
        one = found[name]
        axes.barh(place, one.median, 0.72, color=colour)
        low, high = known_interval(one)
        axes.errorbar(one.median, place, xerr=[[one.median - low], [high - one.median]], color=INK, capsize=2.5, lw=1)
        annotate(axes, three_digits(one.median), (high, place), (5, 0), va="center")
    axes.set_xlim(0, 1.25 * max(known_interval(one)[1] for one in found.values()))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    tidy_axes(axes, "x")


def draw_roofline(results: Results) -> Figure | None:
    """Draw what is achieved against what the machine's memory and arithmetic allow, a panel for each machine."""
    works = [one for one in results.of("latency") if achieved(one) is not None and operations_per_byte(one)]
    peaks: dict[str, dict[str, dict[str, float]]] = {}
    for one in results.of("peak"):  # the largest of each machine, unit and precision
        of_unit = peaks.setdefault(machine_of(one), {"GFLOP/s": {}, "GB/s": {}}).setdefault(one.unit, {})
        precision = str(one.settings.get("precision", "fp32"))
        of_unit[precision] = max(of_unit.get(precision, 0.0), *one.values)
    machines = [name for name in dict.fromkeys(map(machine_of, works)) if peaks.get(name, {}).get("GFLOP/s")]
    if not machines:
        return None
    figure = Figure(figsize=(10, 5.4 * len(machines)), layout="constrained")
    for axes, machine in zip(figure.subplots(len(machines), 1, squeeze=False)[:, 0], machines, strict=True):
        own = [one for one in works if machine_of(one) == machine]
        draw_roofs(axes, own, peaks[machine]["GFLOP/s"], max(peaks[machine]["GB/s"].values(), default=0))
        axes.set_ylabel(f"GFLOP/s ({machine})")
    figure.suptitle("Roofline: operations and bytes as the graph counts them, peaks as measured in the same run")
    return figure


def draw_roofs(axes: Axes, works: Sequence[Measurement], roofs: Mapping[str, float], bandwidth: float) -> None:
    """Draw one machine: `roofs` in GFLOP/s by precision; `bandwidth` in GB/s, or 0 if it is not known."""
    points = [(operations_per_byte(one), achieved(one) or math.nan) for one in works]
    across = [x for x, _ in points] + [peak / bandwidth for peak in roofs.values() if bandwidth]
    left, right = min(across) / 5, max(across) * 8
    highest = max(roofs.values())
    for precision, peak in roofs.items():
        axes.plot([peak / bandwidth if bandwidth else left, right], [peak, peak], color=INK, lw=1.3, zorder=1)
        text = f"peak in {precision}: {three_digits(peak)} GFLOP/s"
        annotate(axes, text, (right, peak), (0, 3), ha="right", va="bottom")
    if bandwidth:
        axes.plot([left, highest / bandwidth], [left * bandwidth, highest], color=INK, lw=1.3, zorder=1)
        text, start = f"copy: {three_digits(bandwidth)} GB/s", 1.5 * left
        annotate(axes, text, (start, start * bandwidth), (8, -8), ha="left", va="bottom")
    names = [distinct_name(one, works) for one in works]
    present = list(dict.fromkeys(names))
    colours, shapes = assigned([*KNOWN, *names], PALETTE), assigned(map(size_and_batch, works), MARKERS)
    for one, name, (x, y) in zip(works, names, points, strict=True):
        beside = 1.1 ** (present.index(name) - (len(present) - 1) / 2)  # or markers of one graph would hide each other
        shape = shapes[size_and_batch(one)]
        axes.plot(x * beside, y, shape, color=colours[name], ms=8, mec="white", mew=0.7, zorder=3)
    handles = [legend_marker("o", colours[name], name) for name in present] + [legend_marker("", GREY, "")]
    handles += [legend_marker(shape, GREY, work) for work, shape in shapes.items()]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    lowest = min([*(y / 1.5 for _, y in points), *([left * bandwidth] if bandwidth else [])])
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(lowest, 1.6 * max(highest, *(y for _, y in points))))
    axes.set_xlabel("operations per byte, if every operator reads and writes memory (markers are spread a little)")
    tidy_axes(axes, "both")


def operations_per_byte(one: Measurement) -> float:
    """Return the operations over the bytes of the graph; 0 if one of them is not known."""
    work, moved = one.facts.get("gflop"), one.facts.get("mb_moved")
    if not isinstance(work, int | float) or not isinstance(moved, int | float) or not moved:
        return 0.0
    return 1e9 * work / (1e6 * moved)


def draw_scaling(results: Results) -> Figure | None:
    """Draw time and memory against pixels and against images, both logarithmic, with the fitted curves."""
    measured = results.of("scaling")
    fits = [one for one in measured if one.unit == "exponent"]
    overs = [over for over in ("pixels", "images") if any(one.settings.get("over") == over for one in fits)]
    units = [unit for unit in ("ms", "s", "MB") if any(one.unit == unit for one in measured)]
    if not overs or not units:
        return None
    figure = Figure(figsize=(1 + 4.6 * len(overs), 0.8 + 3.3 * len(units)), layout="constrained")
    panels = figure.subplots(len(units), len(overs), squeeze=False)
    for row, unit in enumerate(units):
        sweep = [one for one in measured if one.unit == unit]
        least = min((count_of(one, "batch") for one in sweep), default=1)
        batched = {pixels_of(one) for one in sweep if count_of(one, "batch") > 1}
        points = {
            "pixels": [(least * pixels_of(one), one) for one in sweep if count_of(one, "batch") == least],
            "images": [(count_of(one, "batch"), one) for one in sweep if pixels_of(one) in batched],
        }
        for axes, over in zip(panels[row], overs, strict=True):
            fitted = [one for one in fits if one.settings.get("over") == over and one.settings.get("of") == unit]
            draw_costs(axes, sorted(points[over], key=lambda pair: pair[0]), fitted)
            axes.set(xlabel=over, ylabel={"MB": "peak MB"}.get(unit, unit))
            if over == "images":
                axes.xaxis.set_major_locator(FixedLocator(sorted({x for x, _ in points[over]})))
    figure.suptitle("Cost against size, with the exponents of size; of times with their 90 % intervals")
    return figure


def draw_costs(axes: Axes, points: Sequence[tuple[int, Measurement]], fits: Sequence[Measurement]) -> None:
    """Draw costs over sizes, as points with their intervals, and the fitted curves of each contestant."""
    for name, colour in assigned((one.contestant for _, one in points), PALETTE).items():
        own = [(x, one) for x, one in points if one.contestant == name]
        x, y = np.array([x for x, _ in own], np.float64), np.array([one.median for _, one in own])
        ends = np.array([known_interval(one) for _, one in own])
        axes.errorbar(x, y, yerr=[y - ends[:, 0], ends[:, 1] - y], fmt="o", color=colour, capsize=2.5, ms=5)
        for fit in fits:
            scale = fit.facts.get("scale")
            if fit.contestant == name and isinstance(scale, int | float):
                low, high = known_interval(fit)
                label = f"{name}: exponent {fit.median:.2f}" + (f" ({low:.2f} to {high:.2f})" if low < high else "")
                axes.plot(x, scale * x**fit.median, color=colour, lw=1.3, label=label)
    axes.set(xscale="log", yscale="log")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="upper left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.12)
    tidy_axes(axes, "both")


def draw_stages(results: Results) -> Figure | None:
    """Draw the stages' medians as stacked bars, a bar for each image."""
    measured = [one for one in results.of("stages") if one.unit in TIMES]
    if not measured:
        return None
    images: dict[str, list[Measurement]] = {}
    for one in measured:
        images.setdefault(size_and_batch(one), []).append(one)
    colours = assigned((one.contestant for one in measured), PALETTE)
    figure = Figure(figsize=(9, 1.5 + 0.55 * len(images)), layout="constrained")
    axes = figure.subplots()
    longest = max(sum(one.median for one in stages) for stages in images.values())
    for place, stages in enumerate(images.values()):
        left = 0.0
        for one in stages:
            colour = colours[one.contestant]
            axes.barh(place, one.median, 0.66, left, color=colour)
            if one.median > 0.06 * longest:
                red, green, blue = to_rgb(colour)
                ink = INK if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"  # readable on the bar
                middle = left + one.median / 2
                axes.text(middle, place, three_digits(one.median), ha="center", va="center", fontsize=8, color=ink)
            left += one.median
        annotate(axes, f"{three_digits(left)} {measured[0].unit}", (left, place), (4, 0), va="center")
    axes.set_yticks(range(len(images)), list(images))
    axes.set_ylim(len(images) - 0.5, -0.5)
    axes.set_xlim(0, 1.13 * longest)
    axes.set_xlabel(measured[0].unit)
    tidy_axes(axes, "x")
    handles = [Line2D([], [], color=colour, lw=6, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside right center", fontsize=9, frameon=False)
    figure.suptitle("Stages of one prediction, medians")
    return figure


def draw_trade_off(results: Results) -> Figure | None:
    """Draw image Dice against time: a line for each precision, a marker for each width."""
    dices = {frozenset(one.settings.items()): one.median for one in results.of("trade-off") if one.unit == "Dice"}
    times = [one for one in results.of("trade-off") if one.unit == "ms" and frozenset(one.settings.items()) in dices]
    if not times:
        return None
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[Measurement]] = {}
    for one in times:
        lines.setdefault(str(one.settings.get("precision", "fp32")), []).append(one)
    colours, shapes = assigned(lines, PALETTE), assigned((f"base {count_of(one, 'base')}" for one in times), MARKERS)
    for precision, line in lines.items():
        own, colour = sorted(line, key=lambda one: count_of(one, "base")), colours[precision]
        dice = [dices[frozenset(one.settings.items())] for one in own]
        axes.plot([one.median for one in own], dice, color=colour, lw=1.2, alpha=0.6)
        for one, y in zip(own, dice, strict=True):
            axes.plot(known_interval(one), [y, y], color=colour, lw=1)
            shape = shapes[f"base {count_of(one, 'base')}"]
            axes.plot(one.median, y, shape, color=colour, ms=9, mec="white", mew=0.7, zorder=3)
    handles = [Line2D([], [], color=colour, lw=2, label=precision) for precision, colour in colours.items()]
    handles += [legend_marker("", GREY, ""), *(legend_marker(shape, GREY, name) for name, shape in shapes.items())]
    axes.legend(handles=handles, fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set(xscale="log", xlabel="ms an image, lower is better", ylabel="image Dice, higher is better")
    tidy_axes(axes, "both")
    figure.suptitle("Accuracy against speed, by precision and by channels of the first level (base)")
    return figure


PICTURES: Mapping[str, Callable[[Results], Figure | None]] = {
    "latency.png": draw_latency,
    "roofline.png": draw_roofline,
    "scaling.png": draw_scaling,
    "stages.png": draw_stages,
    "trade-off.png": draw_trade_off,
}
"""The function that draws each file, or returns None if nothing was measured for it."""


def assigned(names: Iterable[str], kinds: Sequence[str]) -> dict[str, str]:
    """Give each name its colour or marker, in order; they are used again if there are more names."""
    return dict(zip(dict.fromkeys(names), cycle(kinds), strict=False))


def distinct_name(one: Measurement, among: Sequence[Measurement]) -> str:
    """Return the contestant, with precision and device if these differ among the measurements."""
    varied = varying(among)
    how = [str(one.settings[name]) for name in ("precision", "device") if name in varied and name in one.settings]
    return ", ".join([one.contestant, *how])


def size_and_batch(one: Measurement) -> str:
    """Return size (width x height) and batch in words."""
    return settings_text(one.settings, ("height", "width", "batch"))


def count_of(one: Measurement, name: str) -> int:
    """Return a setting that is a whole number, or 1 if there is none."""
    value = one.settings.get(name, 1)
    return value if isinstance(value, int) else 1


def pixels_of(one: Measurement) -> int:
    """Return the pixels of one image."""
    return count_of(one, "height") * count_of(one, "width")


def known_interval(one: Measurement) -> tuple[float, float]:
    """Return the interval of the median, or the median twice if there are too few values."""
    low, high = one.interval
    return (low, high) if math.isfinite(high) else (one.median, one.median)


def legend_marker(marker: str, colour: str, label: str) -> Line2D:
    """Make a legend's entry of a marker without a line."""
    return Line2D([], [], marker=marker, color=colour, ls="", ms=7, label=label)


def annotate(axes: Axes, text: str, point: tuple[float, float], offset: tuple[int, int], **alignment: Any) -> None:
    """Write a small text at so many points from a point of the data."""
    axes.annotate(text, point, xytext=offset, textcoords="offset points", fontsize=8, color=INK, **alignment)


def tidy_axes(axes: Axes, grid: Literal["both", "x"]) -> None:
    """Draw a grid and no box, and give logarithmic axes plain numbers."""
    axes.grid(axis=grid, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
    for axis, kind in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if kind == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 12 * low else (1, 1.5, 2, 3, 4, 5, 7)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            axis.set_minor_formatter(NullFormatter())
