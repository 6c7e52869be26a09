"""Drawing of figures as SVG inside a page: without scripts and fonts, the same bytes for the same numbers."""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ham_dist.errors import ReportError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH = 8
"""Width of a figure in inches, the same for all, so that text has the same size in all of them."""

# Placeholder in matplotlib's output for the text color of the page, which differs on a dark page.
_INK = "#010203"
COLORS = ("#2b83ba", "#e08214", "#1b9e77", "#cc79a7", "#b8a000", "#d7553c", "#808080")
"""Colors of curves: safe for the color-blind, and visible on black and on white; after Okabe and Ito,
https://jfly.uni-koeln.de/color/"""
MARKERS = "osD^vPX*"
"""Markers of curves."""
STYLES = math.lcm(len(COLORS), len(MARKERS))
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


def line(axes: "Axes", number: int, x: Sequence[float], y: Iterable[float | None], **style: Any) -> None:
    """Draw a curve with the color and marker of its `number`; None in `y` leaves a gap."""
    marker, color = MARKERS[number % len(MARKERS)], COLORS[number % len(COLORS)]
    axes.plot(x, [number_or_gap(value) for value in y], marker=marker, color=color, **style)


def legend_layout(names: Sequence[str]) -> tuple[int, float]:
    """Returns the number of columns of a legend next to a figure, and the height of the figure in inches.

    A wider legend would leave no room for the figure.
    """
    columns = 2 if len(names) > 16 and max(map(len, names)) <= 12 else 1
    return columns, max(3.4, 0.6 + 0.18 * math.ceil(len(names) / columns))


def number_or_gap(value: float | None) -> float:
    """Returns the value, or NaN for None, which leaves a gap in the curve."""
    return math.nan if value is None else value


def short(text: str) -> str:
    """Returns at most 32 characters of `text`."""
    return text if len(text) <= 32 else text[:31] + "…"


def tick_format(text: Callable[[float], str]) -> Any:
    """Returns a formatter that labels the ticks of an axis by `text`."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: text(value))


def svg_of(name: str, draw: Callable[["Canvas"], None], width: float, height: float) -> str:
    """Returns the SVG of what `draw` draws on `width` x `height` inches.

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
