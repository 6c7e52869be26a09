"""The grid of a study, as tables to print."""

from collections.abc import Iterator

from rich.console import RenderableType

from ham_dist.io.console import make_table
from ham_dist.study.grid import Study


def describe_grid(study: Study) -> Iterator[RenderableType]:
    """The number of groups and branches, and one line per group."""
    yield (
        f"Study {study.settings.name}: {len(study.groups):,} supernets (groups) "
        f"with {study.branches:,} branches."
    )
    yield make_table(
        ("group", "data", "model", "seed", "branches"),
        (
            (group.label, group.data, group.model, str(group.seed), str(len(group.branches)))
            for group in study.groups
        ),
        texts=3,
    )
    arms: dict[str, int] = {}
    for group in study.groups:
        for branch in group.branches:
            arms[branch.arm] = arms.get(branch.arm, 0) + 1
    yield make_table(("arm", "branches"), ((arm, f"{count:,}") for arm, count in arms.items()))
