"""The figures of a study, after Fig. 3, 4 and 5 of the HAM paper."""

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from ham_dist.config.units import size_text
from ham_dist.report.drawing import COLORS, MARKERS, WIDTH, Figure, legend_layout, short, svg_of, tick_format
from ham_dist.study.comparison import Cell, Comparison
from ham_dist.study.cosines import Cosines
from ham_dist.study.outcomes import Place
from ham_dist.study.statistics import Mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

MATRICES = 6
"""Largest number of tables whose cosines are drawn."""
LEVELS = 41
"""Colors of cosines. From 50 on matplotlib draws the color bar as an image, which a page may not hold."""


def by_size(name: str, comparison: Comparison, place: Place) -> Figure | None:
    """Returns AUC by size and AUC by embedding parameters of every arm of a model; None without a mean.

    After Fig. 3 of the HAM paper, which leaves the worst method out of the second panel, too.
    """
    cells = [cell for cell in comparison.cells(place) if cell.mean is not None]
    whole = [cell for cell in cells if not cell.size.is_budget]
    cells = [cell for cell in cells if cell.size.is_budget]
    if not cells:
        return None
    arms = [arm for arm in comparison.arms(place) if any(cell.arm == arm for cell in cells)]
    sizes = list(dict.fromkeys(cell.size for cell in cells if cell.size in comparison.sizes(place)))
    columns, height = legend_layout([short(label) for label in [*arms, *(cell.arm for cell in whole)]])
    floor, below = _floor(cells)
    unsized = [arm for arm in arms if comparison.without_column_budget(place, arm)]

    def draw(canvas: "Canvas") -> None:
        left, right = canvas.subplots(1, 2, width_ratios=(1.3, 1))
        width = 0.8 / len(arms)
        for number, arm in enumerate(arms):
            of_arm = [cell for cell in cells if cell.arm == arm]
            sized = [cell for cell in of_arm if cell.size in sizes and arm not in unsized]
            shift = (number - (len(arms) - 1) / 2) * width
            places = [sizes.index(cell.size) + shift for cell in sized]
            _bars(left, number, places, sized, gid=f"{name}-size-{number}", label=short(arm), line="none")
            best = [_mean(cell).best for cell in sized]
            left.plot(places, best, "_", color=COLORS[number % len(COLORS)], markersize=6, linestyle="none")
            known = [cell for cell in of_arm if _parameters(cell) is not None and arm not in below]
            _bars(right, number, [_parameters(cell) or 0 for cell in known], known,
                  gid=f"{name}-parameters-{number}", label=short(arm), line="-")  # fmt: skip
        for cell, style in zip(whole, itertools.cycle(("--", ":", "-."))):
            for axes in (left, right):
                level = _mean(cell).mean
                if axes is left or floor is None or level >= floor:
                    axes.axhline(level, color=COLORS[-1], linestyle=style, linewidth=1.2, label=_whole(cell))
        left.set_xticks(range(len(sizes)), [size.label for size in sizes])
        left.set_xlabel("target size, columns" if {s.unit for s in sizes} == {"columns"} else "target size")
        for axes in (left, right):
            axes.set_ylabel(f"{comparison.measure} AUC")
        left.grid(visible=False, axis="x")
        _log_if_wide(right, [value for cell in cells if (value := _parameters(cell))])
        right.locator_params(axis="x", nbins=5)
        right.xaxis.set_major_formatter(tick_format(_count))
        right.set_xlabel("embedding parameters")
        handles = {
            label: handle
            for axes in (right, left)
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        labels = [label for label in map(short, [*arms, *map(_whole, whole)]) if label in handles]
        canvas.legend(
            [handles[label] for label in labels], labels,
            loc="outside right upper", ncols=columns, fontsize=8,
        )  # fmt: skip

    data, model = place
    caption = (
        f"{model} on {data}: mean {comparison.measure} AUC by target size, and by the parameters of the "
        "tables. Bars are 95 % intervals of the mean over seeds; a dash is the best seed."
    )
    if unsized:
        caption += f" Without a budget of columns, and so only on the right: {', '.join(unsized)}."
    if below:
        caption += f" Far below the others, and left out on the right: {', '.join(below)}."
    return Figure(svg_of(name, draw, WIDTH + 2, height), caption)


def _floor(cells: Sequence[Cell]) -> tuple[float | None, list[str]]:
    """The AUC below which arms are far from the others, and the arms that lie below; None without such."""
    means = sorted(_mean(cell).mean for cell in cells)
    middle = median(means)
    floor = middle - 3 * (means[-1] - middle)
    arms = list(dict.fromkeys(cell.arm for cell in cells if _mean(cell).mean < floor))
    return (floor, arms) if arms else (None, [])


def _whole(cell: Cell) -> str:
    return short(f"{cell.arm} (all columns)")


def against(name: str, comparison: Comparison, data: str, arms: Sequence[str]) -> Figure | None:
    """Returns AUC by embedding parameters of a few arms on one data set, with a marker for each model.

    After Fig. 4 of the HAM paper. None unless at least two of the arms have a mean.
    """
    places = [place for place in comparison.results.places if place[0] == data]
    cells = [
        cell
        for place in places
        for cell in comparison.cells(place)
        if cell.arm in arms and cell.size.is_budget and cell.mean is not None
        and _parameters(cell) is not None
    ]  # fmt: skip
    drawn = [arm for arm in arms if any(cell.arm == arm for cell in cells)]
    if len(drawn) < 2:
        return None
    models = [model for _, model in places]

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        for number, arm in enumerate(drawn):
            for mark, model in enumerate(models):
                of_model = [cell for cell in cells if cell.arm == arm and cell.place[1] == model]
                if of_model:
                    _bars(
                        axes, number, [_parameters(cell) or 0 for cell in of_model], of_model, mark=mark,
                        gid=f"{name}-{number}-{mark}", label=short(f"{arm}, {model}"), line=":",
                    )  # fmt: skip
        _log_if_wide(axes, [value for cell in cells if (value := _parameters(cell))])
        axes.xaxis.set_major_formatter(tick_format(_count))
        axes.set_xlabel("embedding parameters")
        axes.set_ylabel(f"{comparison.measure} AUC")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)

    return Figure(
        svg_of(name, draw, WIDTH, 3.4),
        f"{' and '.join(drawn)} on {data}: mean {comparison.measure} AUC by the parameters of the tables, "
        "with 95 % intervals over seeds.",
    )


def cosine_maps(name: str, arms: Mapping[str, Mapping[str, Cosines]], where: str) -> Figure | None:
    """Returns the cosines between the columns of the same tables in several models, as heat maps.

    After Fig. 5 of the HAM paper. None without a table with at least two columns in all of them.

    Args:
        arms: Cosines by field, by the label of the model.
        where: Data, model and seed, for the caption.
    """
    fields = [
        field for field in next(iter(arms.values()), {}) if all(field in tables for tables in arms.values())
    ]
    if not fields:
        return None
    shown = sorted(fields, key=lambda field: -max(len(tables[field].matrix) for tables in arms.values()))
    shown = [field for field in fields if field in shown[:MATRICES]]

    def draw(canvas: "Canvas") -> None:
        from matplotlib import colormaps

        colors = colormaps["RdBu_r"].resampled(LEVELS)
        panels: Any = canvas.subplots(len(arms), len(shown), squeeze=False)
        for row, (arm, tables) in zip(panels, arms.items(), strict=True):
            for axes, field in zip(row, shown, strict=True):
                matrix = tables[field].matrix
                mesh = axes.pcolormesh(
                    matrix, cmap=colors, vmin=-1, vmax=1, edgecolors="face", linewidth=0.2,
                    gid=f"{name}-{list(arms).index(arm)}-{shown.index(field)}",
                )  # fmt: skip
                axes.set_aspect("equal")
                axes.invert_yaxis()
                axes.grid(visible=False)
                axes.set_xticks([0.5, len(matrix) - 0.5], ["1", str(len(matrix))])
                axes.set_yticks([0.5, len(matrix) - 0.5], ["1", str(len(matrix))])
                axes.tick_params(length=0)
                mean = tables[field].mean
                if mean is not None:
                    axes.set_xlabel(f"mean |cos| {mean:.3f}", fontsize=8)
            row[0].set_ylabel(short(arm))
        for axes, field in zip(panels[0], shown, strict=True):
            axes.set_title(short(field))
        canvas.colorbar(mesh, ax=panels, label="cosine", shrink=0.8, aspect=30)

    return Figure(
        svg_of(
            name,
            draw,
            min(WIDTH, 1.2 + 2.1 * len(shown)),
            0.4 + (0.6 + WIDTH / max(3.5, len(shown))) * len(arms) * 0.8,
        ),
        f"Cosines between the columns of a table, {where}; columns are numbered from 1. Below each: mean "
        "absolute cosine of two different columns.",
    )


def _bars(
    axes: "Axes",
    number: int,
    x: Sequence[float],
    cells: Sequence[Cell],
    *,
    line: str,
    mark: int | None = None,
    **style: Any,
) -> None:
    """Means with their intervals, in the color of `number`; without an interval only the mean."""
    means = [_mean(cell) for cell in cells]
    y = [mean.mean for mean in means]
    errors = [
        [0.0 if mean.low is None else mean.mean - mean.low for mean in means],
        [0.0 if mean.high is None else mean.high - mean.mean for mean in means],
    ]
    color = COLORS[number % len(COLORS)]
    marker = MARKERS[(number if mark is None else mark) % len(MARKERS)]
    axes.errorbar(x, y, yerr=errors, fmt="none", ecolor=color, elinewidth=1, capsize=2)
    axes.plot(x, y, marker=marker, color=color, linestyle=line, **style)


def _mean(cell: Cell) -> Mean:
    assert cell.mean is not None
    return cell.mean


def _parameters(cell: Cell) -> float | None:
    known = [o.embedding_parameters for o in cell.outcomes if o.error is None and o.embedding_parameters]
    return fmean(known) if known else None


def _log_if_wide(axes: "Axes", values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(tick_format(lambda value: ""))


def _count(value: float) -> str:
    return size_text(value).removesuffix(" bytes").replace(" kB", " k").replace("B", "")
