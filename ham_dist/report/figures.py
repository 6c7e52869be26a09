"""The figures of a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ham_dist.config.units import size_text
from ham_dist.data.statistics import HEADS, DatasetStatistics
from ham_dist.embedding.table_size import TableSize
from ham_dist.report.drawing import (
    COLORS,
    STYLES,
    WIDTH,
    Figure,
    legend_layout,
    line,
    number_or_gap,
    short,
    svg_of,
    tick_format,
)
from ham_dist.report.record import Metrics
from ham_dist.training.frontier import SizedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

STAGES = ("pretrain", "search", "retrain", "quantize")
FIELDS_SHOWN = 50
"""Largest number of fields in figures: bars show the largest ones, and further curves have no names."""


@dataclass(frozen=True)
class Point:
    """One model in the comparison.

    Attributes:
        kind: Model and method.
        embedding_bytes: Bytes of all its tables.
        auc: Its test AUC.
    """

    kind: str
    embedding_bytes: int
    auc: float


def training(name: str, rows: Sequence[Metrics]) -> Figure:
    """Returns a figure of validation AUC and log loss by epoch of each stage in `rows`; one point per row."""
    stages = [stage for stage in STAGES if any(row.stage == stage for row in rows)]

    def draw(canvas: "Canvas") -> None:
        panels: Any = canvas.subplots(2, len(stages), sharex="col", sharey="row", squeeze=False)
        for (above, below), stage in zip(panels.T, stages, strict=True):
            of_stage = [row for row in rows if row.stage == stage]
            epochs = [row.epoch for row in of_stage]
            above.set_title(stage)
            line(above, 0, epochs, [row.validation_auc for row in of_stage], gid=f"{name}-{stage}-auc")
            line(
                below,
                1,
                epochs,
                [row.train_loss for row in of_stage],
                gid=f"{name}-{stage}-train-loss",
                label="training",
            )
            line(
                below,
                0,
                epochs,
                [row.validation_logloss for row in of_stage],
                gid=f"{name}-{stage}-validation-loss",
                label="validation",
            )
            below.set_xlabel("epoch")
            below.xaxis.get_major_locator().set_params(integer=True)
        panels[0, 0].set_ylabel("validation AUC")
        panels[1, 0].set_ylabel("log loss")
        panels[1, 0].legend()

    return Figure(
        svg_of(name, draw, WIDTH * (0.1 + 0.3 * len(stages)), 4),
        "Validation AUC and log loss, by stage and epoch.",
    )


def search(name: str, rows: Sequence[Metrics], unit: str) -> Figure:
    """Returns a figure of the search by step of the run: columns or bytes in use, and the target.

    Args:
        rows: The rows with `used`, one per epoch: the count at the end of the epoch, and its range within the
            epoch.
        unit: `columns` or `bytes`.
    """

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        text = size_text if unit == "bytes" else "{:,.0f}".format
        steps = [row.step for row in rows]
        low, high = (
            [number_or_gap(value) for value in values]
            for values in zip(*((row.used_lowest, row.used_highest) for row in rows), strict=True)
        )
        axes.fill_between(
            steps, low, high, color=COLORS[0], alpha=0.2, linewidth=0, label="range within the epoch"
        )
        line(axes, 0, steps, [row.used for row in rows], gid=f"{name}-used", label=f"{unit} in use")
        if (target := rows[-1].target) is not None:
            axes.axhline(target, color=COLORS[1], linestyle="--", label=f"target {text(target)}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step of the run")
        axes.set_ylabel(f"{unit} in use")
        axes.yaxis.set_major_formatter(tick_format(text))
        axes.legend()

    return Figure(
        svg_of(name, draw, WIDTH, 2.8),
        f"The search: {unit} in use at the end of each epoch, and the fewest and most within it.",
    )


def sizes(name: str, tables: Sequence[TableSize]) -> Figure:
    """Returns a bar chart of columns and bytes of each field before and after the search."""
    shown = sorted(tables, key=lambda table: -table.bytes_before)[:FIELDS_SHOWN]
    order = [table for table in tables if table in shown]

    def draw(canvas: "Canvas") -> None:
        columns, memory = canvas.subplots(1, 2, sharey=True)
        places = range(len(order))
        for axes, before, after in (
            (columns, [table.base_dim for table in order], [table.searched_dim for table in order]),
            (memory, [table.bytes_before for table in order], [table.bytes_after for table in order]),
        ):
            axes.barh(places, before, height=0.75, color=COLORS[-1], alpha=0.35, label="before")
            axes.barh(places, after, height=0.45, color=COLORS[0], label="after")
            axes.grid(visible=False, axis="y")
        columns.set_yticks(places, [short(table.field) for table in order])
        columns.invert_yaxis()
        columns.xaxis.get_major_locator().set_params(integer=True)
        columns.set_xlabel("columns")
        memory.set_xlabel("bytes")
        memory.xaxis.set_major_formatter(tick_format(size_text))
        memory.locator_params(axis="x", nbins=4)
        canvas.legend(*memory.get_legend_handles_labels(), loc="outside upper right", ncols=2)

    which = (
        f"the {len(order)} largest of {len(tables):,} fields" if len(order) < len(tables) else "all fields"
    )
    return Figure(
        svg_of(name, draw, WIDTH, 1 + 0.24 * len(order)), f"Columns and bytes before and after: {which}."
    )


def heads(name: str, look: DatasetStatistics) -> Figure:
    """Returns a figure of the share of training values in the most frequent ids; one line per field."""
    named = len(look.fields) <= min(FIELDS_SHOWN, STYLES)
    columns, height = legend_layout([field.name for field in look.fields] if named else [])

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        shares = [1 / part for part in HEADS.values()]
        for number, field in enumerate(look.fields):
            style = {"label": short(field.name)} if named else {"linewidth": 0.6}
            line(
                axes,
                number,
                shares,
                [field.head[share] for share in HEADS],
                gid=f"{name}-field-{number}",
                **style,
            )
        axes.set_xscale("log")
        axes.set_xticks(shares, HEADS)
        axes.minorticks_off()
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(tick_format(lambda share: f"{share:.0%}"))
        axes.set_xlabel("most frequent ids of the field")
        axes.set_ylabel("share of its training values")
        if named:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), ncols=columns, fontsize=8)

    return Figure(
        svg_of(name, draw, WIDTH, height),
        "From head to tail: the higher a line begins, the fewer ids make up most values of the field.",
    )


def frontier(name: str, models: Sequence[SizedModel]) -> Figure:
    """Returns a figure of validation AUC over that of the supernet by bytes, with standard errors."""

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        costs = [model.bytes for model in models]
        _axis_of_bytes(axes, costs, logarithmic_above=4)
        line(axes, 0, costs, [model.difference for model in models], gid=f"{name}-models")
        axes.errorbar(
            costs,
            [model.difference for model in models],
            yerr=[model.standard_error for model in models],
            fmt="none",
            ecolor=COLORS[0],
            capsize=3,
        )
        axes.axhline(0, color=COLORS[1], linestyle="--", label="supernet")
        axes.set_ylabel("validation AUC over supernet")
        axes.legend()

    return Figure(
        svg_of(name, draw, WIDTH, 2.8),
        "Validation AUC of each size less that of the supernet on the same rows; bars are standard errors.",
    )


def comparison(name: str, points: Sequence[Point]) -> Figure:
    """Returns a figure of test AUC by embedding bytes; one point per model, with a marker per kind."""
    kinds = list(dict.fromkeys(point.kind for point in points))
    columns, height = legend_layout(kinds[:STYLES])

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        _axis_of_bytes(axes, [point.embedding_bytes for point in points], logarithmic_above=10)
        for number, kind in enumerate(kinds):
            of_kind = [point for point in points if point.kind == kind]
            x, y = [point.embedding_bytes for point in of_kind], [point.auc for point in of_kind]
            label = short(kind) if number < STYLES else None
            line(axes, number, x, y, gid=f"{name}-kind-{number}", label=label, linestyle="none", markersize=6)
        axes.set_ylabel("test AUC")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), ncols=columns, fontsize=8)

    return Figure(svg_of(name, draw, WIDTH, height), "Test AUC by bytes of all tables, on one test split.")


def _axis_of_bytes(axes: Any, costs: Sequence[int], *, logarithmic_above: int) -> None:
    """Sets up the x axis for bytes; logarithmic if the largest is more than this many times the smallest."""
    if min(costs) > 0 and max(costs) > logarithmic_above * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(tick_format(lambda count: ""))
    axes.xaxis.set_major_formatter(tick_format(size_text))
    axes.set_xlabel("embedding bytes")
