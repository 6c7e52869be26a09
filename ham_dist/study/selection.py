"""The part of a study that a command runs: `--only model=dcnv2 --only seed=0,1`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ham_dist.errors import ConfigError
from ham_dist.study.grid import Branch, Group

AXES = ("seed", "data", "model", "arm")


@dataclass(frozen=True)
class Selection:
    """Values of axes; an axis without values is not limited.

    Attributes:
        values: Values by axis. An arm of a grid is named by its whole label, or by the label before the first
            comma, which names all of the grid's arms.
    """

    values: dict[str, frozenset[str]] = field(default_factory=dict)

    def has(self, group: Group, branch: Branch) -> bool:
        """True if a branch belongs to the part."""
        return all(wanted & _names(group, branch)[axis] for axis, wanted in self.values.items())


def selection(options: Sequence[str], groups: Iterable[Group]) -> Selection:
    """Returns the selection that the values of `--only` make.

    Args:
        options: `AXIS=VALUE[,VALUE]` each.
        groups: Groups of the study.
    Raises:
        ConfigError: An option is malformed, or no branch of the study has the value.
    """
    values: dict[str, frozenset[str]] = {}
    known: dict[str, set[str]] = {axis: set() for axis in AXES}
    for group in groups:
        for branch in group.branches:
            for axis, names in _names(group, branch).items():
                known[axis] |= names
    for option in options:
        axis, equals, text = option.partition("=")
        if axis not in AXES or not equals:
            raise ConfigError(
                f"--only {option}: expected AXIS=VALUE[,VALUE] with one of the axes {', '.join(AXES)}, "
                "such as --only model=dcnv2"
            )
        # The label of one arm of a grid has commas of its own.
        wanted = frozenset([text] if text in known[axis] else text.split(","))
        if unknown := sorted(wanted - known[axis]):
            raise ConfigError(
                f"--only {option}: no branch of the study has {axis} {unknown[0]!r}; it has: "
                f"{', '.join(sorted(known[axis]))}"
            )
        values[axis] = values.get(axis, frozenset()) | wanted
    return Selection(values)


def _names(group: Group, branch: Branch) -> dict[str, set[str]]:
    return {
        "seed": {str(group.seed)},
        "data": {group.data},
        "model": {group.model},
        "arm": {branch.arm, branch.arm.partition(",")[0]},
    }
