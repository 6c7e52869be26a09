"""The course of a search: alpha of every column, columns in use, and columns that open again."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from ham_dist.config.units import size_text
from ham_dist.report.drawing import COLORS, WIDTH, Figure, number_or_gap, svg_of, tick_format
from ham_dist.report.record import TracePoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

CURVES = 200
"""Largest number of columns whose numbers are drawn."""
CURVE_POINTS = 150
"""Largest number of points of each of these curves."""


def reopened(trace: Sequence[TracePoint]) -> tuple[list[int], int]:
    """Returns how many columns had opened again up to each point, and how many columns ever did.

    A column opens again if it is open at a point, closed at the one before, and was open earlier.

    Args:
        trace: Points of one search, of at least one column.
    """
    counts, ever_open, again = [0], {i for i, digit in enumerate(trace[0].open) if digit == "1"}, set()
    for before, after in pairwise(trace):
        opened = [i for i, (old, new) in enumerate(zip(before.open, after.open, strict=True)) if old < new]
        back = [column for column in opened if column in ever_open]
        again.update(back)
        ever_open.update(opened)
        counts.append(counts[-1] + len(back))
    return counts, len(again)


def search_course(name: str, trace: Sequence[TracePoint], unit: str) -> Figure:
    """Returns the course of a search by its steps, after Fig. 2 of the HAM paper.

    Args:
        trace: The lines of search.jsonl; at least one.
        unit: `columns` or `bytes`.
    """
    columns = len(trace[0].values)
    drawn = range(0, columns, max(1, math.ceil(columns / CURVES)))
    coarse = trace[:: max(1, math.ceil(len(trace) / CURVE_POINTS))]
    openings, again = reopened(trace)
    every = trace[1].step - trace[0].step if len(trace) > 1 else 1
    steps = [point.step for point in trace]
    near = _near_zero(trace[-1].values)

    def draw(canvas: "Canvas") -> None:
        above, middle, below = _panels(canvas)
        for column in sorted(drawn, key=lambda column: trace[-1].open[column]):
            is_open = trace[-1].open[column] == "1"
            above.plot(
                [point.step for point in coarse],
                [number_or_gap(point.values[column]) for point in coarse],
                color=COLORS[0] if is_open else COLORS[-1],
                linewidth=0.8 if is_open else 0.5,
                alpha=0.8 if is_open else 0.5,
                gid=f"{name}-column-{column}",
            )
        if near is not None:
            above.set_yscale("symlog", linthresh=near)
            above.minorticks_off()
            above.yaxis.set_major_formatter(tick_format("{:g}".format))
        above.axhline(0, color=COLORS[1], linewidth=1, linestyle="--")
        above.set_ylabel(f"{trace[0].name} of each column")
        above.plot([], [], color=COLORS[0], label="open at the end")
        above.plot([], [], color=COLORS[-1], label="closed at the end")
        above.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
        middle.plot(
            steps,
            [point.used for point in trace],
            color=COLORS[0],
            linewidth=0.9,
            gid=f"{name}-used",
            label=f"{unit} in use",
        )
        middle.plot(steps, [point.target for point in trace], color=COLORS[1], linestyle="--", label="target")
        middle.set_ylim(bottom=0)
        middle.set_ylabel(f"{unit} in use")
        if unit == "bytes":
            middle.yaxis.set_major_formatter(tick_format(size_text))
        middle.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
        below.plot(steps, openings, color=COLORS[2], gid=f"{name}-again")
        below.set_ylim(0, max(1, openings[-1]) * 1.05)
        below.set_ylabel("opened again")
        below.set_xlabel("step of the search")

    often = "every step" if every == 1 else f"every {every:,} steps"
    caption = (
        f"The course of the search, {often}: {trace[0].name} of each column; {unit} in use and "
        f"their target; and how often a column had opened again by then. {again:,} of {columns:,} columns "
        "closed and opened again at least once between these points."
    )
    if near is not None:
        caption += f" The scale is linear from -{near:.2g} to {near:.2g}, and logarithmic outside."
    if len(drawn) < columns:
        caption += f" The upper panel has {len(drawn):,} columns, evenly spaced."
    return Figure(svg_of(name, draw, WIDTH, 6), caption)


def _near_zero(values: Sequence[float | None]) -> float | None:
    """The typical distance of the last numbers from 0; None unless they lie on both sides of it."""
    known = [value for value in values if value is not None]
    if not known or not min(known) < 0 < max(known):
        return None
    return median(abs(value) for value in known) or None


def _panels(canvas: "Canvas") -> Any:
    return canvas.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
