"""The targets of a search: ladders of sizes, and the epochs of a falling search."""

from collections.abc import Mapping

from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.errors import TargetError

LARGEST, SMALLEST = 1 / 2, 1 / 16
"""Ends of a ladder, as shares of the supernet's columns."""


def resolved(settings: RunSettings, num_embeddings: Mapping[str, int]) -> RunSettings:
    """Returns the settings with ladders replaced by their targets.

    Targets of a falling search are in descending order, each once.

    Args:
        settings: Settings of a run.
        num_embeddings: C_j, by field.
    Raises:
        TargetError: A falling search has targets in columns and in bytes, or in bytes of several precisions.
    """
    search = settings.search
    total = sum(settings.model.dim_of(rows) for rows in num_embeddings.values())
    targets = [rung for target in search.targets for rung in _rungs(target, total)]
    if search.schedule == "falling":
        if len({target.columns is None for target in targets}) > 1:
            raise TargetError(
                'search.schedule = "falling": search.targets has columns and bytes, which have no common '
                "order.\n"
                "  Give all targets in columns, or all in bytes."
            )
        if len({target.precision for target in targets}) > 1:
            raise TargetError(
                'search.schedule = "falling": search.targets has bytes in several precisions, which have no '
                "common order.\n"
                "  Give the same precision for all targets."
            )
        targets.sort(key=lambda target: -(target.columns or target.bytes or 0))
    unique = tuple(dict.fromkeys(targets))
    if unique == search.targets:
        return settings
    return settings.model_copy(update={"search": search.model_copy(update={"targets": unique})})


def epochs_of_falling_search(epochs: int, targets: int) -> list[int]:
    """Returns the epochs at each target: `epochs` divided as evenly as possible, at least 1 each.

    The first targets get what is left over: there the search starts with all columns open.
    """
    return [max(1, epochs // targets + (number < epochs % targets)) for number in range(targets)]


def _rungs(target: Target, total: int) -> list[Target]:
    """`target` itself, or the targets of its ladder, from the largest to the smallest."""
    if target.ladder is None:
        return [target]
    ratio = (SMALLEST / LARGEST) ** (1 / (target.ladder - 1))
    columns = [max(1, round(total * LARGEST * ratio**number)) for number in range(target.ladder)]
    return [Target(columns=count) for count in dict.fromkeys(columns)]
