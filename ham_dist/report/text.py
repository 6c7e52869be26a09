"""Numbers as text for readers."""

NOTHING = "\N{EN DASH}"
"""Text of an unknown value."""


def count_text(count: int | None) -> str:
    """Returns a count as text, such as `26,400`."""
    return NOTHING if count is None else f"{count:,}"


def quality_text(value: float | None) -> str:
    """Returns AUC or log loss with four digits, as in the paper's tables."""
    return NOTHING if value is None else f"{value:.4f}"


def share_text(share: float | None) -> str:
    """Returns a share as text, such as `12.5%`."""
    return NOTHING if share is None else f"{share:.1%}"
