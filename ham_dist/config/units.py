"""Bytes per number of a table, and sizes in bytes as text."""

from ham_dist.config.schema import TablePrecision

NUMBER_BYTES: dict[TablePrecision, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one number, for modules that do not import torch."""

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def size_text(count: float) -> str:
    """A size in bytes as text with up to four digits, in a decimal unit: `26.4 kB`."""
    exponent = 0
    while abs(count) >= 999.95 and exponent < len(_UNITS) - 1:
        count, exponent = count / 1000, exponent + 1
    return f"{count:.4g} {_UNITS[exponent]}"
