"""The figure of the course of a search."""

from collections.abc import Sequence

from ham_dist.report.course import CURVE_POINTS, CURVES, reopened, search_course
from ham_dist.report.record import TracePoint
from tests.support.html_page import Page


def point(step: int, opened: str, values: Sequence[float] | None = None) -> TracePoint:
    return TracePoint(
        step=step,
        used=opened.count("1"),
        target=2,
        open=opened,
        name="alpha",
        values=list(values) if values is not None else [0.01 if digit == "1" else -0.01 for digit in opened],
    )


def test_openings_by_hand() -> None:
    """Column 0 opens again twice, column 2 opens for the first time only, column 1 stays open."""
    trace = [point(step, opened) for step, opened in enumerate(("110", "010", "111", "011", "111"))]
    assert reopened(trace) == ([0, 0, 1, 1, 2], 1)
    assert reopened(trace[:1]) == ([0], 0)


def test_the_figure_has_a_curve_for_each_column() -> None:
    trace = [point(8 * step, "110" if step % 2 else "011") for step in range(6)]
    figure = search_course("x", trace, "columns")
    ids = Page(figure.svg).ids()
    assert {f"x-column-{column}" for column in range(3)} <= set(ids)
    assert {"x-used", "x-again"} <= set(ids)
    assert "every 8 steps" in figure.caption
    assert "2 of 3 columns closed and opened again" in figure.caption
    texts = Page(figure.svg).texts
    assert {"alpha of each column", "columns in use", "step of the search", "opened again"} <= set(texts)


def test_a_figure_of_many_columns_and_points_stays_small() -> None:
    columns = 3 * CURVES + 1
    trace = [
        point(
            step, "10" * (columns // 2) + "1", [((step * 7 + column) % 11) / 10 for column in range(columns)]
        )
        for step in range(2 * CURVE_POINTS + 1)
    ]
    figure = search_course("x", trace, "bytes")
    drawn = [entry for entry in Page(figure.svg).ids() if entry.startswith("x-column-")]
    assert CURVES / 2 < len(drawn) <= CURVES
    assert f"has {len(drawn)} columns, evenly spaced" in figure.caption
    assert len(figure.svg) < 1_500_000


def test_one_point_is_a_figure() -> None:
    assert "0 of 2 columns" in search_course("x", [point(0, "11")], "columns").caption


def test_numbers_on_both_sides_of_zero_have_a_scale_that_shows_them() -> None:
    trace = [point(0, "11", [0.01, 0.01]), point(1, "10", [0.01, -0.002])]
    figure = search_course("x", trace, "columns")
    assert "linear from -0.006 to 0.006" in figure.caption, "the median of 0.01 and 0.002"
    assert not any("math" in text for text in Page(figure.svg).texts)
    assert "linear" not in search_course("x", trace[:1], "columns").caption
