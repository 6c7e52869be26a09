"""Transforms of single numbers and times to values, equal to the expressions in `data.encode.transforms`.

The logarithm is that of the C library (`math.log`), as in DuckDB: NumPy's differs in the last bit on some
processors, which would move numbers at the edge of a bucket.
"""

import datetime
import math
import re
from bisect import bisect_right
from collections.abc import Callable

from ham_dist.data.encode.rules import DIGITS, EPOCH, ISO_8601, MOST, hours_before
from ham_dist.data.recipe.fields import FIRST_YEAR, LAST_YEAR, Numeric, Time


def number_transform(field: Numeric) -> Callable[[float], int]:
    """Returns a function that maps a finite number to the integer that the field looks up."""
    match field.transform:
        case "log_square":
            return _log_square
        case "log":
            return _log(field.scale)
        case "quantile":
            assert field.boundaries is not None, "the encoder checks it"
            boundaries = field.boundaries
            return lambda number: bisect_right(boundaries, number)


def _log_square(number: float) -> int:
    if number > 2:
        logarithm = math.log(number)
        return math.floor(logarithm * logarithm)
    return int(max(number, -MOST)) - 2


def _log(scale: float) -> Callable[[float], int]:
    def transform(number: float) -> int:
        size = math.floor(scale * math.log(1 + abs(number)))
        return -size if number < 0 else size

    return transform


def time_transform(field: Time) -> Callable[[str], str | None]:
    """Returns a function that maps the text of a time to the hour or weekday; None if it is not in the layout
    or not in a plausible year."""
    if field.layout in EPOCH:
        return _epoch(field)
    iso = re.compile(ISO_8601) if field.layout == "iso_8601" else None
    length, two_digits = len(field.layout), field.layout == "YYMMDDHH"

    def transform(text: str) -> str | None:
        if iso is not None:
            if iso.fullmatch(text) is None or int(text[14:16] or 0) > 59 or int(text[17:19] or 0) > 60:
                return None
            year, month, day, hour = text[:4], text[5:7], text[8:10], text[11:13]
        else:
            if len(text) != length or not (text.isascii() and text.isdigit()):
                return None
            year, month, day, hour = text[:-6], text[-6:-4], text[-4:-2], text[-2:]
        number = int(year) + (2000 if two_digits else 0)
        if not FIRST_YEAR <= number <= LAST_YEAR or int(hour or 0) > 23:
            return None
        try:
            date = datetime.date(number, int(month), int(day))
        except ValueError:
            return None
        return (hour or None) if field.part == "hour" else str(date.weekday())

    return transform


def _epoch(field: Time) -> Callable[[str], str | None]:
    digits, units_an_hour = EPOCH[field.layout]
    well_written = re.compile(DIGITS.format(most=digits))
    first, end = hours_before(FIRST_YEAR), hours_before(LAST_YEAR + 1)

    def transform(text: str) -> str | None:
        if well_written.fullmatch(text) is None:
            return None
        hours = math.floor(float(text) / units_an_hour)
        if not first <= hours < end:
            return None
        # 1 January 1970 was a Thursday, day 3.
        return f"{hours % 24:02}" if field.part == "hour" else str((hours // 24 + 3) % 7)

    return transform
