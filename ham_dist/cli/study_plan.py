"""The grid of a study, as tables to print."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType

from ham_dist.io.console import make_table
from ham_dist.study.grid import Study


def describe_grid(study: Study, path: Path | None) -> Iterator[RenderableType]:
    """The number of groups and branches, one line per group, and one per arm.

    Args:
        path: Folder of the study, whose finished branches are counted; None: not counted, no data is read.
    """
    done: dict[tuple[str, str], bool] = {}
    if path is not None:
        from ham_dist.study.folder import StudyFolder

        folder = StudyFolder(path, study)
        lines = folder.results.read()
        done = {(keyed.group.label, keyed.branch.label): keyed.key in lines for keyed in folder.branches()}
    yield (
        f"Study {study.settings.name}: {len(study.groups):,} supernets (groups) "
        f"with {study.branches:,} branches" + (f", {sum(done.values()):,} finished." if done else ".")
    )
    counts: dict[str, dict[str, list[int]]] = {"group": {}, "arm": {}}
    for group in study.groups:
        for branch in group.branches:
            finished = done.get((group.label, branch.label), False)
            for axis, label in (("group", group.label), ("arm", branch.arm)):
                found = counts[axis].setdefault(label, [0, 0])
                found[0] += 1
                found[1] += finished
    for axis, of_axis in counts.items():
        yield make_table(
            (axis, "branches", *(["finished"] if done else [])),
            (
                (label, f"{total:,}", *([f"{finished:,}"] if done else []))
                for label, (total, finished) in of_axis.items()
            ),
        )
