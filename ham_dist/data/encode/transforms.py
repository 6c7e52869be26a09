"""Transforms of numbers and times to text values, as Ibis expressions with equal results in every engine."""

from collections.abc import Sequence
from typing import Any

import ibis

from ham_dist.data.encode.rules import DIGITS, EPOCH, ISO_8601, MOST, hours_before
from ham_dist.data.recipe.fields import FIRST_YEAR, LAST_YEAR, Numeric, Time


def number_value(number: Any, field: Numeric) -> Any:
    """The integer that a numeric field maps `number` to, as text; null for null."""
    match field.transform:
        case "log_square":
            # The logarithm is used only above 2. It must not be evaluated for 0, which is an error in DuckDB.
            logarithm = ibis.greatest(number, 2.0).ln()
            value = ibis.cases((number > 2, (logarithm * logarithm).floor()), else_=_whole(number) - 2)
        case "log":
            size = (_float(field.scale) * (1 + number.abs()).ln()).floor()
            value = ibis.ifelse(number < 0, -size, size)
        case "quantile":
            assert field.boundaries is not None, "the encoder checks it"
            value = _bucket(number, field.boundaries, 0)
    return ibis.ifelse(number.isnull(), ibis.null("string"), value.cast("int64").cast("string"))


def _whole(number: Any) -> Any:
    """Rounds towards 0, as Python's int does, because casts round differently in each engine. Clamped to
    +-MOST."""
    number = ibis.greatest(ibis.least(number, MOST), -MOST)
    return ibis.cases((number < 0, number.ceil()), else_=number.floor())


def _bucket(number: Any, boundaries: Sequence[float], below: int) -> Any:
    """`below` + number of `boundaries` (ascending) that are <= `number`: a binary search as nested
    conditions."""
    if not boundaries:
        return ibis.literal(below)
    middle = len(boundaries) // 2
    boundary = _float(boundaries[middle])
    low = _bucket(number, boundaries[:middle], below)
    high = _bucket(number, boundaries[middle + 1 :], below + middle + 1)
    return ibis.ifelse(number < boundary, low, high)


def _float(number: float) -> Any:
    """A float64 literal, cast from text: DuckDB parses a literal number as a decimal and may round it
    incorrectly."""
    return ibis.literal(repr(number)).cast("float64")


def quantiles(counted: ibis.Table, number: str, buckets: int) -> ibis.Table:
    """Computes the boundaries of quantile buckets.

    A number is in the bucket floor(count of smaller numbers * buckets / count of all), so equal numbers share
    a bucket.

    Args:
        counted: Distinct values of the column `number`, each with its `count`; null is ignored.
        number: Name of that column.
        buckets: Number of buckets.
    Returns:
        Column `boundary`: lower bound of each bucket but the first, ascending.
    """
    known = counted.filter(counted[number].notnull())
    ordered = known.mutate(
        _before=known["count"].sum().over(ibis.cumulative_window(order_by=known[number])).cast("int64")
        - known["count"],
        _all=known["count"].sum().over(ibis.window()),
    )
    placed = ordered.mutate(_bucket=ordered._before * buckets // ordered._all)
    starts = placed.group_by("_bucket").aggregate(boundary=lambda t: t[number].min())
    return starts.filter(starts._bucket > 0).select("boundary").order_by("boundary")


def time_value(cell: Any, field: Time) -> Any:
    """The hour or weekday of a time, as text; null if the cell is not in the layout or not in a plausible
    year."""
    if field.layout in EPOCH:
        return _epoch_value(cell, field)
    if field.layout == "iso_8601":
        well_written = cell.re_search(f"^{ISO_8601}$")
        places = {
            "year": (0, 4),
            "month": (5, 2),
            "day": (8, 2),
            "hour": (11, 2),
            "minute": (14, 2),
            "second": (17, 2),
        }
    else:
        years = len(field.layout) - len("MMDDHH")
        well_written = (cell.length() == len(field.layout)) & cell.re_search("^[0-9]+$")
        places = {"year": (0, years), "month": (years, 2), "day": (years + 2, 2), "hour": (years + 4, 2)}

    def part(name: str) -> Any:
        # A date without a time has no hour, and an hour may have no minutes.
        text = cell.substr(*places[name])
        return ibis.ifelse(well_written & text.re_search("^[0-9]+$"), text, "0").cast("int64")

    year = part("year") + (2000 if field.layout == "YYMMDDHH" else 0)
    is_time = well_written & _is_date(year, part("month"), part("day")) & (part("hour") <= 23)
    if field.layout == "iso_8601":
        is_time = is_time & (part("minute") <= 59) & (part("second") <= 60)
    if field.part == "hour":
        hour = cell.substr(*places["hour"])
        return ibis.ifelse(is_time & (hour.length() == 2), hour, ibis.null("string"))
    weekday = _weekday(year, part("month"), part("day"))
    return ibis.ifelse(is_time, weekday.cast("string"), ibis.null("string"))


def _epoch_value(cell: Any, field: Time) -> Any:
    digits, units_an_hour = EPOCH[field.layout]
    well_written = cell.re_search(f"^{DIGITS.format(most=digits)}$")
    hours = (ibis.ifelse(well_written, cell, "0").cast("float64") / units_an_hour).floor().cast("int64")
    is_time = well_written & hours.between(hours_before(FIRST_YEAR), hours_before(LAST_YEAR + 1) - 1)
    # 1 January 1970 was a Thursday, day 3.
    value = (
        (hours % 24).cast("string").lpad(2, "0")
        if field.part == "hour"
        else ((hours // 24 + 3) % 7).cast("string")
    )
    return ibis.ifelse(is_time, value, ibis.null("string"))


def _is_date(year: Any, month: Any, day: Any) -> Any:
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    days = ibis.cases(
        (month == 2, ibis.ifelse(leap, 29, 28)),
        (month.isin([4, 6, 9, 11]), ibis.literal(30)),
        else_=ibis.literal(31),
    )
    return year.between(FIRST_YEAR, LAST_YEAR) & month.between(1, 12) & day.between(1, days)


def _weekday(year: Any, month: Any, day: Any) -> Any:
    """Weekday, 0 for Monday.

    Source: Zeller's congruence, in which January and February are months 13 and 14 of the year before, and 0
    is Saturday.
    """
    early = month <= 2
    year, month = year - early.cast("int64"), month + early.cast("int64") * 12
    return (day + 13 * (month + 1) // 5 + year + year // 4 - year // 100 + year // 400 + 5) % 7
