"""Numbers as a reader wants them."""

UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")
NOTHING = "\N{EN DASH}"
"""For what is not known."""


def size_text(count: float) -> str:
    """Bytes in the decimal unit that leaves up to three digits before the point, to four digits: `26.4 kB`."""
    exponent = 0
    while abs(count) >= 999.95 and exponent < len(UNITS) - 1:
        count, exponent = count / 1000, exponent + 1
    return f"{count:.4g} {UNITS[exponent]}"


def count_text(count: int | None) -> str:
    """`26,400`."""
    return NOTHING if count is None else f"{count:,}"


def quality_text(value: float | None) -> str:
    """AUC or log loss, to four digits as in the paper's tables."""
    return NOTHING if value is None else f"{value:.4f}"


def share_text(share: float | None) -> str:
    """`12.5%`."""
    return NOTHING if share is None else f"{share:.1%}"
