"""Bytes: how many a number of a table takes, and how a reader wants them."""

from ham_dist.config.schema import TablePrecision

NUMBER_BYTES: dict[TablePrecision, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one number, for rooms that have no torch to ask."""

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def size_text(count: float) -> str:
    """Bytes in the decimal unit that leaves up to three digits before the point, to four digits: `26.4 kB`."""
    exponent = 0
    while abs(count) >= 999.95 and exponent < len(_UNITS) - 1:
        count, exponent = count / 1000, exponent + 1
    return f"{count:.4g} {_UNITS[exponent]}"
