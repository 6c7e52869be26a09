"""Numbers as a reader wants them."""

NOTHING = "\N{EN DASH}"
"""For what is not known."""


def count_text(count: int | None) -> str:
    """`26,400`."""
    return NOTHING if count is None else f"{count:,}"


def quality_text(value: float | None) -> str:
    """AUC or log loss, to four digits as in the paper's tables."""
    return NOTHING if value is None else f"{value:.4f}"


def share_text(share: float | None) -> str:
    """`12.5%`."""
    return NOTHING if share is None else f"{share:.1%}"
