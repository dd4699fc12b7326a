"""The pictures of a run: latency, roofline, scaling, stages, accuracy against speed; PNG files of what was measured."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmarks.contestants.registry import contestants_on
from benchmarks.reporting.report import TIMES, achieved, machine_of
from benchmarks.reporting.tables import number, shown_settings, size_of, varying
from benchmarks.results import Measurement, Results
from runtime.devices.device import CPU_DEVICE
from runtime.support.files import make_folder, replacing

COLOURS = (
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

Series = Sequence[tuple[float, Measurement]]
"""Measurements with what they are drawn over."""


def draw(results: Results, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw what there are measurements for, each picture written atomically; returns their paths.

    Raises:
        OutputError: a file cannot be written.
    """
    place, written = make_folder(folder), []
    for name, picture in PICTURES.items():
        figure = picture(results)
        if figure is None:
            continue
        _sign(figure, results)
        with replacing(place / name) as temporary:
            figure.savefig(temporary, dpi=DPI)
        written.append(place / name)
    return written


def _sign(figure: Figure, results: Results) -> None:
    """Below the picture: the machine, the network, and what makes the times doubtful."""
    kinds = dict.fromkeys(map(machine_of, results.measurements))
    names = [str(results.environment.get(kind)) for kind in ("cpu", "gpu") if kind in kinds]
    of_model = [
        str(results.environment[name]) for name in ("card", "network", "model") if results.environment.get(name)
    ]
    machine = "; ".join([*names, ", ".join(of_model)])
    doubt = f"\nNot a measurement: {results.disturbance}" if results.disturbance else ""
    figure.supxlabel(_plain(machine + doubt), fontsize=8, color=WARNING if doubt else GREY)


def _plain(text: str) -> str:
    """Text in which "$" does not begin a formula."""
    return text.replace("$", r"\$")


def _latency(results: Results) -> Figure | None:
    """Bars with the 90 % intervals of the medians: a row of panels for each machine and size, columns by batch."""
    measured = [one for one in results.of("latency") if one.unit == "ms" and {"height", "width"} <= one.settings.keys()]
    if not measured:
        return None
    machines = {name: [one for one in measured if machine_of(one) == name] for name in map(machine_of, measured)}
    names = {one.key: _name(one, together) for together in machines.values() for one in together}
    colours = _numbered([*KNOWN, *names.values()])
    batches = sorted({_count(one, "batch") for one in measured})
    rows: dict[tuple[str, str], list[Measurement]] = {}
    for one in measured:
        rows.setdefault((machine_of(one), size_of(one.settings)), []).append(one)
    high = [0.9 + 0.28 * len({names[one.key] for one in row}) for row in rows.values()]
    figure = Figure(figsize=(3.4 + 3.2 * len(batches), 0.7 + sum(high)), layout="constrained")
    panels = figure.subplots(len(rows), len(batches), squeeze=False, sharey="row", height_ratios=high)
    for line, ((machine, size), row) in zip(panels, rows.items(), strict=True):
        bars = {name: COLOURS[colours[name] % 12] for name in dict.fromkeys(names[one.key] for one in row)}
        for axes, batch in zip(line, batches, strict=True):
            _bars(axes, {names[one.key]: one for one in row if _count(one, "batch") == batch}, bars)
            axes.set_title(f"{size}, batch {batch}, {machine}", fontsize=10)
    figure.suptitle("Latency in ms, lower is better: medians with 90 % intervals")
    return figure


def _bars(axes: Axes, found: Mapping[str, Measurement], bars: Mapping[str, str]) -> None:
    """A bar for each name that was found, in its colour, on a line for each of `bars`."""
    axes.set_yticks(range(len(bars)), [_plain(name) for name in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    if not found:
        axes.set_frame_on(False)
        axes.xaxis.set_major_locator(FixedLocator([]))
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", **_small(GREY))
        return
    for place, (name, colour) in enumerate(bars.items()):
        if name not in found:
            axes.text(0.01, place, "not measured", transform=axes.get_yaxis_transform(), va="center", **_small(GREY))
            continue
        one = found[name]
        axes.barh(place, one.median, 0.72, color=colour)
        low, high = _ends(one)
        axes.errorbar(one.median, place, xerr=[[one.median - low], [high - one.median]], color=INK, capsize=2.5, lw=1)
        axes.annotate(number(one.median), (high, place), **_beside(5))
    axes.set_xlim(0, 1.25 * max(_ends(one)[1] for one in found.values()))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    _tidy(axes, "x")


def _roofline(results: Results) -> Figure | None:
    """What is achieved against what the memory and the arithmetic of the machine allow, a panel for each machine."""
    works = [one for one in results.of("latency") if achieved(one) is not None and _bytes(one)]
    machines = [name for name in dict.fromkeys(map(machine_of, works)) if _peaks(results, name, "GFLOP/s")]
    if not machines:
        return None
    figure = Figure(figsize=(10, 5.4 * len(machines)), layout="constrained")
    for axes, machine in zip(figure.subplots(len(machines), 1, squeeze=False)[:, 0], machines, strict=True):
        roofs, copies = _peaks(results, machine, "GFLOP/s"), _peaks(results, machine, "GB/s")
        _roofline_panel(
            axes, [one for one in works if machine_of(one) == machine], roofs, max(copies.values(), default=0)
        )
        axes.set_ylabel(f"GFLOP/s ({machine})")
    figure.suptitle("Roofline: operations and bytes as the graph counts them, peaks as measured in the same run")
    return figure


def _peaks(results: Results, machine: str, unit: str) -> dict[str, float]:
    """The largest of each precision."""
    found: dict[str, float] = {}
    for one in results.of("peak"):
        if one.unit == unit and machine_of(one) == machine:
            precision = str(one.settings.get("precision", "fp32"))
            found[precision] = max(found.get(precision, 0.0), *one.values)
    return found


def _roofline_panel(axes: Axes, works: Sequence[Measurement], roofs: Mapping[str, float], bandwidth: float) -> None:
    """`roofs` in GFLOP/s by precision; `bandwidth` in GB/s, or 0 if it is not known."""
    points = [(_intensity(one), achieved(one) or math.nan) for one in works]
    across = [x for x, _ in points] + [peak / bandwidth for peak in roofs.values() if bandwidth]
    left, right = min(across) / 5, max(across) * 8
    highest = max(roofs.values())
    for precision, peak in roofs.items():
        axes.plot([peak / bandwidth if bandwidth else left, right], [peak, peak], color=INK, lw=1.3, zorder=1)
        axes.annotate(f"{precision} product: {number(peak)} GFLOP/s", (right, peak), **_above("right", (0, 3)))
    if bandwidth:
        axes.plot([left, highest / bandwidth], [left * bandwidth, highest], color=INK, lw=1.3, zorder=1)
        axes.annotate(
            f"copy: {number(bandwidth)} GB/s", (1.5 * left, 1.5 * left * bandwidth), **_above("left", (8, -8))
        )
    present, shapes = _numbered(_name(one, works) for one in works), _numbered(map(_work, works))
    names = _numbered([*KNOWN, *present])
    for one, (x, y) in zip(works, points, strict=True):
        name = _name(one, works)
        beside = 1.1 ** (present[name] - (len(present) - 1) / 2)  # or the markers of one graph would hide each other
        colour, marker = COLOURS[names[name] % 12], MARKERS[shapes[_work(one)] % 12]
        axes.plot(x * beside, y, marker, color=colour, ms=8, mec="white", mew=0.7, zorder=3)
    handles = [_handle("o", COLOURS[names[name] % 12], name) for name in present]
    handles += [_handle("", GREY, ""), *(_handle(MARKERS[index % 12], GREY, name) for name, index in shapes.items())]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    lowest = min([*(y / 1.5 for _, y in points), *([left * bandwidth] if bandwidth else [])])
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(lowest, 1.6 * max(highest, *(y for _, y in points))))
    axes.set_xlabel("operations per byte, if every operator reads and writes memory (markers are spread a little)")
    _tidy(axes, "both")


def _bytes(one: Measurement) -> float:
    moved = one.facts.get("mb_moved")
    return 1e6 * moved if isinstance(moved, int | float) else 0.0


def _intensity(one: Measurement) -> float:
    """Operations per byte."""
    work = one.facts["gflop"]
    assert isinstance(work, int | float)
    return 1e9 * work / _bytes(one)


def _scaling(results: Results) -> Figure | None:
    """Time and memory against pixels and against images, both logarithmic, with the fitted curves."""
    measured = results.of("scaling")
    fits = [one for one in measured if one.unit == "exponent"]
    overs = [over for over in ("pixels", "images") if any(one.settings.get("over") == over for one in fits)]
    units = [unit for unit in ("ms", "s", "MB") if any(one.unit == unit for one in measured)]
    if not overs or not units:
        return None
    figure = Figure(figsize=(1 + 4.6 * len(overs), 0.8 + 3.3 * len(units)), layout="constrained")
    panels = figure.subplots(len(units), len(overs), squeeze=False)
    for row, unit in enumerate(units):
        for column, over in enumerate(overs):
            points = _sweep([one for one in measured if one.unit == unit], over)
            fitted = [one for one in fits if one.settings.get("over") == over and one.settings.get("of") == unit]
            _scaling_panel(panels[row, column], points, fitted, over, unit)
    figure.suptitle("Cost against size, with the exponents of size; of times with their 90 % intervals")
    return figure


def _sweep(measured: Sequence[Measurement], over: str) -> Series:
    """(Pixels, measurement) of single images, or (images, measurement) of the size that has several batches."""
    if over == "pixels":
        least = min((_count(one, "batch") for one in measured), default=1)
        singles = [one for one in measured if _count(one, "batch") == least]
        return sorted(((least * _pixels(one), one) for one in singles), key=lambda pair: pair[0])
    several = {_pixels(one) for one in measured if _count(one, "batch") > 1}
    return sorted(
        ((_count(one, "batch"), one) for one in measured if _pixels(one) in several), key=lambda pair: pair[0]
    )


def _scaling_panel(axes: Axes, points: Series, fits: Sequence[Measurement], over: str, unit: str) -> None:
    for name, index in _numbered(one.contestant for _, one in points).items():
        colour = COLOURS[index % 12]
        own = [(x, one) for x, one in points if one.contestant == name]
        x, y = np.array([x for x, _ in own], np.float64), np.array([one.median for _, one in own])
        ends = np.array([_ends(one) for _, one in own])
        axes.errorbar(x, y, yerr=[y - ends[:, 0], ends[:, 1] - y], fmt="o", color=colour, capsize=2.5, ms=5)
        for fit in fits:
            scale = fit.facts.get("scale")
            if fit.contestant == name and isinstance(scale, int | float):
                low, high = _ends(fit)
                label = f"{name}: exponent {fit.median:.2f}" + (f" ({low:.2f} to {high:.2f})" if low < high else "")
                axes.plot(x, scale * x**fit.median, color=colour, lw=1.3, label=_plain(label))
    axes.set(xscale="log", yscale="log", xlabel=over, ylabel={"MB": "peak MB"}.get(unit, unit))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="upper left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.12)
    _tidy(axes, "both")
    if over == "images":
        axes.xaxis.set_major_locator(FixedLocator(sorted({x for x, _ in points})))


def _stages(results: Results) -> Figure | None:
    """Stacked bars of the stages' medians, a bar for each image."""
    measured = [one for one in results.of("stages") if one.unit in TIMES]
    if not measured:
        return None
    images: dict[str, list[Measurement]] = {}
    for one in measured:
        images.setdefault(_work(one), []).append(one)
    colours = _numbered(one.contestant for one in measured)
    figure = Figure(figsize=(9, 1.5 + 0.55 * len(images)), layout="constrained")
    axes = figure.subplots()
    longest = max(sum(one.median for one in stages) for stages in images.values())
    for place, stages in enumerate(images.values()):
        left = 0.0
        for one in stages:
            colour = COLOURS[colours[one.contestant] % 12]
            axes.barh(place, one.median, 0.66, left, color=colour)
            if one.median > 0.06 * longest:
                text = number(one.median)
                axes.text(left + one.median / 2, place, text, ha="center", va="center", **_small(_ink_on(colour)))
            left += one.median
        axes.annotate(f"{number(left)} {measured[0].unit}", (left, place), **_beside(4))
    axes.set_yticks(range(len(images)), list(images))
    axes.set_ylim(len(images) - 0.5, -0.5)
    axes.set_xlim(0, 1.13 * longest)
    axes.set_xlabel(measured[0].unit)
    _tidy(axes, "x")
    handles = [Line2D([], [], color=COLOURS[index % 12], lw=6, label=name) for name, index in colours.items()]
    figure.legend(handles=handles, loc="outside right center", fontsize=9, frameon=False)
    figure.suptitle("Stages of one prediction, medians")
    return figure


def _ink_on(colour: str) -> str:
    red, green, blue = to_rgb(colour)
    return INK if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"


def _trade_off(results: Results) -> Figure | None:
    """Image Dice against time: a line for each precision, a marker for each width."""
    dices = {frozenset(one.settings.items()): one.median for one in results.of("trade-off") if one.unit == "Dice"}
    times = [one for one in results.of("trade-off") if one.unit == "ms" and frozenset(one.settings.items()) in dices]
    if not times:
        return None
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    axes = figure.subplots()
    lines, widths = _numbered(map(_precision, times)), _numbered(str(_count(one, "base")) for one in times)
    for line, index in lines.items():
        colour = COLOURS[index % 12]
        own = sorted((one for one in times if _precision(one) == line), key=lambda one: _count(one, "base"))
        dice = [dices[frozenset(one.settings.items())] for one in own]
        axes.plot([one.median for one in own], dice, color=colour, lw=1.2, alpha=0.6)
        for one, y in zip(own, dice, strict=True):
            axes.plot(_ends(one), [y, y], color=colour, lw=1)
            marker = MARKERS[widths[str(_count(one, "base"))] % 12]
            axes.plot(one.median, y, marker, color=colour, ms=9, mec="white", mew=0.7, zorder=3)
    handles = [Line2D([], [], color=COLOURS[index % 12], lw=2, label=_plain(line)) for line, index in lines.items()]
    handles += [_handle("", GREY, "")]
    handles += [_handle(MARKERS[index % 12], GREY, f"base {width}") for width, index in widths.items()]
    axes.legend(handles=handles, fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set(xscale="log", xlabel="ms an image, lower is better", ylabel="image Dice, higher is better")
    _tidy(axes, "both")
    figure.suptitle("Accuracy against speed, by precision and by channels of the first level (base)")
    return figure


def _precision(one: Measurement) -> str:
    return str(one.settings.get("precision", "fp32"))


PICTURES: Mapping[str, Callable[[Results], Figure | None]] = {
    "latency.png": _latency,
    "roofline.png": _roofline,
    "scaling.png": _scaling,
    "stages.png": _stages,
    "trade-off.png": _trade_off,
}


def _name(one: Measurement, among: Sequence[Measurement]) -> str:
    """The contestant, with precision and device where they differ among these."""
    varied = varying(among)
    how = [str(one.settings[name]) for name in ("precision", "device") if name in varied and name in one.settings]
    return ", ".join([one.contestant, *how])


def _work(one: Measurement) -> str:
    """Size and batch in words."""
    return shown_settings({name: one.settings[name] for name in ("height", "width", "batch") if name in one.settings})


def _count(one: Measurement, name: str) -> int:
    value = one.settings.get(name, 1)
    return value if isinstance(value, int) else 1


def _pixels(one: Measurement) -> int:
    return _count(one, "height") * _count(one, "width")


KNOWN = tuple(peer.name for peer in contestants_on(CPU_DEVICE) if peer.precision == "fp32")
"""Contestants that have the same colour in all pictures."""


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(dict.fromkeys(names))}


def _ends(one: Measurement) -> tuple[float, float]:
    """The interval of the median; of too few values the median itself."""
    low, high = one.interval
    return (low, high) if math.isfinite(high) else (one.median, one.median)


def _handle(marker: str, colour: str, label: str) -> Line2D:
    return Line2D([], [], marker=marker, color=colour, ls="", ms=7, label=_plain(label))


def _small(colour: str) -> dict[str, Any]:
    return {"fontsize": 8, "color": colour}


def _beside(points: int) -> dict[str, Any]:
    return {"xytext": (points, 0), "textcoords": "offset points", "va": "center", **_small(INK)}


def _above(side: str, offset: tuple[int, int]) -> dict[str, Any]:
    return {"xytext": offset, "textcoords": "offset points", "ha": side, "va": "bottom", **_small(INK)}


def _tidy(axes: Axes, grid: Literal["both", "x"]) -> None:
    """A grid, no box; logarithmic axes with plain numbers."""
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
