"""Result of `ham-dist score`, as a table to print."""

from collections.abc import Iterator

from rich.console import RenderableType

from ham_dist.export.scorer import Scored
from ham_dist.io.console import make_table


def describe_unknown(scored: Scored) -> Iterator[RenderableType]:
    """Counts of unknown values by field, next to their shares in a split of the training data."""
    expected = scored.expected
    counts = scored.unknown
    yield "Unknown values (id 0) of each field:"
    yield make_table(
        ("field", "values", "unknown", "share", *([] if expected is None else [f"share, {expected.split}"])),
        (
            (
                field,
                f"{counts.values.get(field, 0):,}",
                f"{counts.unknown.get(field, 0):,}",
                f"{counts.share(field):.1%}",
                *([] if expected is None else [f"{expected.shares[field]:.1%}"]),
            )
            for field in counts.fields
        ),
    )
    if expected is None:
        yield (
            "The bundle has no shares of the training data to compare with. Export the run again to add them."
        )
