"""The folder of a study: its groups, their branches, and what is left to run."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ham_dist.config.load import flat
from ham_dist.data.format.manifest import Manifest
from ham_dist.errors import ConfigError, DataError
from ham_dist.io.atomic import write_json
from ham_dist.io.untrusted import read_json
from ham_dist.study.grid import WITHOUT_EFFECT, Branch, Group, Study
from ham_dist.study.results import RESULTS, Line, Lines
from ham_dist.study.selection import Selection
from ham_dist.training.data_record import digest_of
from ham_dist.training.run_folder import RunFolder
from ham_dist.training.run_paths import BRANCHES

LINE = "line.json"
"""The branch's line of results.jsonl, in its folder."""
GRID = "grid.json"
"""The study's branches with their keys and folders, which `study test` reads."""


@dataclass(frozen=True)
class Keyed:
    """A branch with its key.

    Attributes:
        key: 16 hexadecimal digits, see `Branch.key`.
        group: Its group.
        branch: The branch.
    """

    key: str
    group: Group
    branch: Branch

    @property
    def place(self) -> str:
        """Its folder within that of the group."""
        return f"{BRANCHES}/{self.branch.label}-{self.key[:8]}"


class StudyFolder:
    """The folder of a study.

    Attributes:
        path: The folder.
        study: The study.
        results: results.jsonl.
        part: The branches to run; all others stay missing.
    Args:
        path: The folder, which need not exist.
        study: The study.
        part: All branches by default.
    Raises:
        DataError: Prepared data is missing or damaged.
    """

    def __init__(self, path: Path, study: Study, part: Selection | None = None) -> None:
        self.path = path
        self.part = part or Selection()
        self.study = study
        self.results = Lines(path / RESULTS)
        digests = dict[str, str]()
        self._branches = {
            group.label: [
                Keyed(branch.key(_digest(group, digests)), group, branch) for branch in group.branches
            ]
            for group in study.groups
        }

    def branches(self, group: Group | None = None) -> Iterator[Keyed]:
        """Yields the branches of one group, or of all groups."""
        for label, keyed in self._branches.items():
            if group is None or label == group.label:
                yield from keyed

    def group_folder(self, group: Group) -> RunFolder:
        """Returns the run folder of a group."""
        return RunFolder(self.path / "groups" / group.label)

    def branch_folder(self, keyed: Keyed) -> RunFolder:
        """Returns the run folder of a branch."""
        return RunFolder(self.group_folder(keyed.group).path / keyed.place)

    def claim(self, group: Group) -> FileLock:
        """Returns the lock of a group; the process that holds it runs the group."""
        folder = self.path / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{group.label}.lock", timeout=0)

    def write_grid(self) -> None:
        """Write grid.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        branches = [
            {
                "key": keyed.key,
                "arm": keyed.branch.arm,
                "folder": str(self.branch_folder(keyed).path.relative_to(self.path)),
                "data": keyed.group.data,
                "path": keyed.group.settings.data.path,
                "generated": str(self.group_folder(keyed.group).data.relative_to(self.path)),
                "seed": keyed.group.seed,
            }
            for keyed in self.branches()
        ]
        grid = {"study": self.study.settings.name, "test": self.study.settings.test, "branches": branches}
        write_json(self.path / GRID, grid)

    def missing(self, group: Group | None = None) -> list[Keyed]:
        """Returns the branches to run that have no line in results.jsonl."""
        return [keyed for keyed in self._missing(group) if self.part.has(keyed.group, keyed.branch)]

    def _missing(self, group: Group | None = None) -> list[Keyed]:
        """All branches without a line in results.jsonl."""
        done = self.results.read()
        return [keyed for keyed in self.branches(group) if keyed.key not in done]

    def failed(self) -> dict[str, Line]:
        """Returns the lines of the study's failed branches, by key."""
        lines = self.results.read()
        return {
            keyed.key: lines[keyed.key]
            for keyed in self.branches()
            if keyed.key in lines and lines[keyed.key]["error"] is not None
        }

    def collect(self) -> None:
        """Add the lines that are in the branches' own folders but not in results.jsonl.

        Raises:
            ConfigError: A line of results.jsonl was made with other settings.
        """
        found = (self.branch_folder(keyed).path / LINE for keyed in self._missing())
        self.results.add(read_json(path) for path in found if path.exists())
        lines = self.results.read()
        for keyed in self.branches():
            if keyed.key in lines:
                _require_settings(self.results.path, keyed, lines[keyed.key])

    def forget_failures(self) -> None:
        """Remove the lines of failed branches, so that they are run again."""
        failed = self.failed()
        for keyed in self.branches():
            if keyed.key in failed:
                (self.branch_folder(keyed).path / LINE).unlink(missing_ok=True)
        self.results.remove(failed)

    def record(self, keyed: Keyed, line: Line) -> None:
        """Write the line of a branch to its folder and to results.jsonl; delete checkpoints without use."""
        folder = self.branch_folder(keyed)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(folder.path / LINE, line)
        self.results.add([line])
        if not keyed.branch.falls:  # the next search of its arm starts from them
            shutil.rmtree(folder.checkpoints, ignore_errors=True)

    def clean(self, group: Group) -> None:
        """Delete the checkpoints of a group if its branches are all finished."""
        if self._missing(group):
            return
        shutil.rmtree(self.group_folder(group).checkpoints, ignore_errors=True)
        for keyed in self.branches(group):
            shutil.rmtree(self.branch_folder(keyed).checkpoints, ignore_errors=True)


def _digest(group: Group, known: dict[str, str]) -> str | None:
    """Digest of a group's prepared data, from `known` if it is there; None for generated data."""
    path = group.settings.data.path
    if path is None:
        return None
    if path not in known:
        try:
            known[path] = digest_of(Manifest.load(path))
        except DataError as error:
            raise DataError(
                f"{error}\n  It is the data {group.data!r} of the study; "
                f"--data {group.data}=DIR gives another folder"
            ) from None
    return known[path]


def _require_settings(path: Path, keyed: Keyed, line: Mapping[str, Any]) -> None:
    """Check that a line was made with the branch's settings, as far as the line has them.

    Settings with default values are not part of the key, and a default can change.
    """
    for key, ours in flat(keyed.branch.settings).items():
        theirs: Any = line["settings"]
        for part in key.split("."):
            theirs = theirs.get(part, ours) if isinstance(theirs, dict) else ours
        if key == "search.targets" or key.startswith((*WITHOUT_EFFECT, "data.synthetic.preset")):
            continue
        if theirs != ours:
            raise ConfigError(
                f"{path}: the line with key {keyed.key} was made with {key} = {theirs!r}, "
                f"but the study has {ours!r}, a default that has changed.\n"
                f"  Set {key} in the study, or remove the line to run its branch again."
            )
