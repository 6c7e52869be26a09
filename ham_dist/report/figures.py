"""Figures as SVG inside a page: without scripts and fonts, and the same bytes for the same numbers."""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ham_dist.config.units import size_text
from ham_dist.data.statistics import HEADS, DatasetStatistics
from ham_dist.embedding.table_size import TableSize
from ham_dist.errors import ReportError
from ham_dist.report.record import Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

STAGES = ("pretrain", "search", "retrain")
FIELDS_SHOWN = 50
"""Largest number of fields in figures: bars show the largest ones, and further curves have no names."""
WIDTH = 8
"""Width of a figure in inches, the same for all, so that text has the same size in all of them."""

# Placeholder in matplotlib's output for the text color of the page, which differs on a dark page.
_INK = "#010203"
# Safe for the color-blind, and visible on black and on white; after Okabe and Ito,
# https://jfly.uni-koeln.de/color/
_COLOURS = ("#2b83ba", "#e08214", "#1b9e77", "#cc79a7", "#b8a000", "#d7553c", "#808080")
_MARKERS = "osD^vPX*"
STYLES = math.lcm(len(_COLOURS), len(_MARKERS))
"""Number of curves or kinds that color and marker together distinguish; a legend has no more entries."""
_STYLE = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "grid.color": _INK,
    "axes.grid": True, "grid.alpha": 0.15, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "font.size": 9, "axes.titlesize": 9, "lines.markersize": 4, "lines.linewidth": 1.4,
    "axes.formatter.useoffset": False,
    "svg.fonttype": "none",  # keep text as text, in the reader's font
    "text.parse_math": False,  # a field may have the name $x$
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A figure of a report.

    Attributes:
        svg: SVG element for the body of a page.
        caption: Caption in plain text.
    """

    svg: str
    caption: str


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


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        ReportError: It is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ReportError(
            "report: matplotlib is not installed. Install it with pip install 'ham-dist[report]'"
        ) from None


def training(name: str, rows: Sequence[Metrics]) -> Figure:
    """Returns a figure of validation AUC and log loss by epoch of each stage in `rows`; one point per row."""
    stages = [stage for stage in STAGES if any(row.stage == stage for row in rows)]

    def draw(canvas: "Canvas") -> None:
        panels: Any = canvas.subplots(2, len(stages), sharex="col", sharey="row", squeeze=False)
        for (above, below), stage in zip(panels.T, stages, strict=True):
            of_stage = [row for row in rows if row.stage == stage]
            epochs = [row.epoch for row in of_stage]
            above.set_title(stage)
            _line(above, 0, epochs, [row.validation_auc for row in of_stage], gid=f"{name}-{stage}-auc")
            _line(
                below,
                1,
                epochs,
                [row.train_loss for row in of_stage],
                gid=f"{name}-{stage}-train-loss",
                label="training",
            )
            _line(
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
        _svg(name, draw, WIDTH * (0.1 + 0.3 * len(stages)), 4),
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
            [_number(value) for value in values]
            for values in zip(*((row.used_lowest, row.used_highest) for row in rows), strict=True)
        )
        axes.fill_between(
            steps, low, high, color=_COLOURS[0], alpha=0.2, linewidth=0, label="range within the epoch"
        )
        _line(axes, 0, steps, [row.used for row in rows], gid=f"{name}-used", label=f"{unit} in use")
        if (target := rows[-1].target) is not None:
            axes.axhline(target, color=_COLOURS[1], linestyle="--", label=f"target {text(target)}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step of the run")
        axes.set_ylabel(f"{unit} in use")
        axes.yaxis.set_major_formatter(_format(text))
        axes.legend()

    return Figure(
        _svg(name, draw, WIDTH, 2.8),
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
            axes.barh(places, before, height=0.75, color=_COLOURS[-1], alpha=0.35, label="before")
            axes.barh(places, after, height=0.45, color=_COLOURS[0], label="after")
            axes.grid(visible=False, axis="y")
        columns.set_yticks(places, [_short(table.field) for table in order])
        columns.invert_yaxis()
        columns.xaxis.get_major_locator().set_params(integer=True)
        columns.set_xlabel("columns")
        memory.set_xlabel("bytes")
        memory.xaxis.set_major_formatter(_format(size_text))
        memory.locator_params(axis="x", nbins=4)
        canvas.legend(*memory.get_legend_handles_labels(), loc="outside upper right", ncols=2)

    which = (
        f"the {len(order)} largest of {len(tables):,} fields" if len(order) < len(tables) else "all fields"
    )
    return Figure(
        _svg(name, draw, WIDTH, 1 + 0.24 * len(order)), f"Columns and bytes before and after: {which}."
    )


def heads(name: str, look: DatasetStatistics) -> Figure:
    """Returns a figure of the share of training values in the most frequent ids; one line per field."""
    named = len(look.fields) <= min(FIELDS_SHOWN, STYLES)
    columns, height = _legend_layout([field.name for field in look.fields] if named else [])

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        shares = [1 / part for part in HEADS.values()]
        for number, field in enumerate(look.fields):
            style = {"label": _short(field.name)} if named else {"linewidth": 0.6}
            _line(
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
        axes.yaxis.set_major_formatter(_format(lambda share: f"{share:.0%}"))
        axes.set_xlabel("most frequent ids of the field")
        axes.set_ylabel("share of its training values")
        if named:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), ncols=columns, fontsize=8)

    return Figure(
        _svg(name, draw, WIDTH, height),
        "From head to tail: the higher a line begins, the fewer ids make up most values of the field.",
    )


def comparison(name: str, points: Sequence[Point]) -> Figure:
    """Returns a figure of test AUC by embedding bytes; one point per model, with a marker per kind."""
    kinds = list(dict.fromkeys(point.kind for point in points))
    columns, height = _legend_layout(kinds[:STYLES])

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        costs = [point.embedding_bytes for point in points]
        if min(costs) > 0 and max(costs) > 10 * min(costs):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(_format(lambda count: ""))
        for number, kind in enumerate(kinds):
            of_kind = [point for point in points if point.kind == kind]
            x, y = [point.embedding_bytes for point in of_kind], [point.auc for point in of_kind]
            label = _short(kind) if number < STYLES else None
            _line(
                axes, number, x, y, gid=f"{name}-kind-{number}", label=label, linestyle="none", markersize=6
            )
        axes.xaxis.set_major_formatter(_format(size_text))
        axes.set_xlabel("embedding bytes")
        axes.set_ylabel("test AUC")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), ncols=columns, fontsize=8)

    return Figure(_svg(name, draw, WIDTH, height), "Test AUC by bytes of all tables, on one test split.")


def _line(axes: "Axes", number: int, x: Sequence[float], y: Iterable[float | None], **style: Any) -> None:
    marker, colour = _MARKERS[number % len(_MARKERS)], _COLOURS[number % len(_COLOURS)]
    axes.plot(x, [_number(value) for value in y], marker=marker, color=colour, **style)


def _legend_layout(names: Sequence[str]) -> tuple[int, float]:
    """Number of columns of a legend next to a figure, and the height of the figure in inches.

    A wider legend would leave no room for the figure.
    """
    columns = 2 if len(names) > 16 and max(map(len, names)) <= 12 else 1
    return columns, max(3.4, 0.6 + 0.18 * math.ceil(len(names) / columns))


def _number(value: float | None) -> float:
    """The value, or NaN for None, which leaves a gap in the curve."""
    return math.nan if value is None else value


def _short(text: str) -> str:
    return text if len(text) <= 32 else text[:31] + "…"


def _format(text: Callable[[float], str]) -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: text(value))


def _svg(name: str, draw: Callable[["Canvas"], None], width: float, height: float) -> str:
    """The SVG of what `draw` draws on `width` x `height` inches.

    Ids begin with `name`, so that they differ between the figures of a page.
    """
    from matplotlib import style
    from matplotlib.figure import Figure as Canvas

    file = io.StringIO()
    with style.context(["default", {**_STYLE, "svg.hashsalt": name}]), warnings.catch_warnings():
        # matplotlib's font only measures the text; the reader's font shows it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas = Canvas(figsize=(width, height), layout="constrained")
        draw(canvas)
        canvas.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(rf'\bid="(?!{re.escape(name)}-)', f'id="{name}-', svg)
    return svg.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
