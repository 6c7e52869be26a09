"""Rules that the expressions of training and the encoder of serving share."""

import datetime

MISSING = "missing"
"""Value of a missing number, and of a missing category where missing = "own"."""
UNIT = "\x1f"
"""ASCII's unit separator, which does not occur in text: replaces the separator of a multi-valued field."""

MOST = 9e18
"""Numbers are clamped to +- this: larger integers do not fit in int64."""

_TIME_OF_DAY = "[0-9]{2}(:[0-9]{2}(:[0-9]{2}([.,][0-9]+)?)?)?"
_ZONE = "(Z|[+-][0-9]{2}(:?[0-9]{2})?)?"
ISO_8601 = f"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}([T ]{_TIME_OF_DAY}{_ZONE})?"
"""Pattern of a whole cell. Each part of the time is at the same place in every cell that has it."""

EPOCH = {"epoch_seconds": (12, 3600), "epoch_milliseconds": (15, 3_600_000)}
"""Maximum number of digits of an epoch time, and its units per hour, by layout."""
DIGITS = "[0-9]{{1,{most}}}([.][0-9]*)?"
"""Pattern of an epoch time of at most `most` digits; `str.format` sets `most`."""


def hours_before(year: int) -> int:
    """Hours from the beginning of 1970 to the beginning of `year`."""
    return int((datetime.datetime(year, 1, 1) - datetime.datetime(1970, 1, 1)).days) * 24
