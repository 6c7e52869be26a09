"""One worker of a study: takes groups that no other worker has, and runs their branches."""

import platform
import shutil
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import Timeout

from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.data.format.manifest import Manifest
from ham_dist.errors import HamError, Preempted
from ham_dist.io.untrusted import read_json
from ham_dist.run import (
    Watch,
    branches_of,
    resolved_targets,
    run_branches,
    with_absolute_path,
    with_target,
)
from ham_dist.stages.branch import RunBranch
from ham_dist.stages.result import SUPERNET
from ham_dist.study.folder import Keyed, StudyFolder
from ham_dist.study.grid import Group
from ham_dist.study.results import Line
from ham_dist.training.environment import environment
from ham_dist.training.run_folder import RunFolder

SECONDS_TO_WAIT = 2.0
"""Time between two looks at groups that other workers run."""


def work(folder: StudyFolder) -> None:
    """Runs all branches without a line in results.jsonl; returns when every branch has one.

    Groups that another worker runs are waited for, in case that worker is killed.

    Raises:
        OSError, Preempted: As for `run_branches`.
    """
    groups = list(folder.study.groups)
    while True:
        held_by_others = [group for group in groups if not _run_group(folder, group)]
        if not held_by_others:
            return
        groups = held_by_others
        time.sleep(SECONDS_TO_WAIT)


def _run_group(folder: StudyFolder, group: Group) -> bool:
    """Runs what is left of a group; returns false if another worker holds it."""
    try:
        with folder.claim(group):
            if missing := folder.missing(group):
                _run_missing(folder, group, missing)
            folder.clean(group)
    except Timeout:
        return not folder.missing(group)
    return True


def _run_missing(folder: StudyFolder, group: Group, missing: Sequence[Keyed]) -> None:
    branches = _branches_to_run(folder, group, missing)
    watch = _Recorder(folder, [keyed for keyed, _ in branches])
    settings = with_absolute_path(group.settings)
    try:
        run_branches(
            settings,
            folder.group_folder(group).path,
            [branch for _, branch in branches],
            resume=True,
            test=False,
            watch=watch,
        )
    except (OSError, MemoryError, Preempted):
        raise
    except Exception as error:  # of data or pretraining, which all branches need
        for keyed in folder.missing(group):
            watch.record_failure(keyed, error)


def _branches_to_run(
    folder: StudyFolder, group: Group, missing: Sequence[Keyed]
) -> list[tuple[Keyed, RunBranch]]:
    """The missing branches as branches of a run, and all others that share a falling search with them."""
    keys = {keyed.key for keyed in missing}
    arms: dict[str, list[Keyed]] = {}
    for keyed in folder.branches(group):
        arms.setdefault(keyed.branch.arm, []).append(keyed)
    found: list[tuple[Keyed, RunBranch]] = []
    for arm in arms.values():
        left = [keyed for keyed in arm if keyed.key in keys]
        if left and left[0].branch.falls:
            found += _falling_branches(folder, arm)
        else:
            found += [(keyed, _branch_of(keyed)) for keyed in left]
    return found


def _falling_branches(folder: StudyFolder, arm: Sequence[Keyed]) -> list[tuple[Keyed, RunBranch]]:
    """The branches of an arm with one falling search, from the largest target to the smallest."""
    settings = resolved_targets(with_absolute_path(arm[0].branch.settings))
    by_target = {keyed.branch.target: keyed for keyed in arm}
    found: list[tuple[Keyed, RunBranch]] = []
    for target, branch in zip(settings.search.targets, branches_of(settings), strict=True):
        keyed = by_target[target]
        held = folder.branch_folder(keyed)
        if held.result.exists() and not held.checkpoints.exists():
            shutil.rmtree(held.path)  # the next search starts from its checkpoints, so it is run again
        follows = found[-1][0].place if found else None
        found.append((keyed, replace(branch, place=keyed.place, follows=follows)))
    return found


def _branch_of(keyed: Keyed) -> RunBranch:
    settings, target = keyed.branch.settings, keyed.branch.target
    if target is None or target == "all":
        settings = with_target(settings, Target(columns=_all_columns(settings)))
    return RunBranch(keyed.place, with_absolute_path(settings), is_supernet=target is None)


def _all_columns(settings: RunSettings) -> int:
    """Number of columns of the supernet."""
    counts: Iterable[int] = settings.data.synthetic.num_embeddings
    if settings.data.path is not None:
        counts = Manifest.load(settings.data.path).num_embeddings().values()
    return sum(settings.model.dim_of(count) for count in counts)


class _Recorder(Watch):
    """Writes the lines of finished and failed branches."""

    def __init__(self, folder: StudyFolder, branches: Iterable[Keyed]) -> None:
        self._folder = folder
        self._keyed = {keyed.place: keyed for keyed in branches}

    def done(self, branch: RunBranch, folder: RunFolder, manifest: Manifest) -> None:
        """Write the line of a finished branch."""
        keyed = self._keyed[branch.place]
        self._folder.record(keyed, _line(self._folder, keyed, read_json(folder.result)))

    def failed(self, branch: RunBranch, error: Exception) -> None:
        """Write the line of a failed branch."""
        self.record_failure(self._keyed[branch.place], error)

    def record_failure(self, keyed: Keyed, error: Exception) -> None:
        """Write the line of a branch that failed; its error has a traceback unless the user can fix it."""
        text = str(error) if isinstance(error, HamError) else "".join(traceback.format_exception(error))
        text = text.replace(f"{Path.cwd()}/", "").replace(f"{self._folder.path}/", "")
        self._folder.record(keyed, _line(self._folder, keyed, {}, text))


def _line(folder: StudyFolder, keyed: Keyed, result: dict[str, Any], error: str | None = None) -> Line:
    """The line of a branch.

    Args:
        result: Content of its result.json; empty if it failed.
        error: Text of its error.
    """
    branch, settings = keyed.branch, keyed.branch.settings
    starts = _starts(folder.branch_folder(keyed))
    data_record = folder.group_folder(keyed.group).data_record
    data = read_json(data_record) if data_record.exists() else {}
    method = {"name": SUPERNET} if branch.target is None else settings.search.method.model_dump(mode="json")
    target = branch.target
    return {
        "study": folder.study.settings.name,
        "key": keyed.key,
        "group": keyed.group.label,
        "arm": branch.arm,
        "data": {
            "name": keyed.group.data,
            "digest": data.get("sha256"),
            "seed": data.get("manifest", {}).get("seed"),
        },
        "model": keyed.group.model,
        "method": method,
        "target": target.model_dump(exclude_none=True) if isinstance(target, Target) else target,
        "seed": settings.seed,
        "settings": settings.model_dump(mode="json"),
        "kept_columns": result.get("kept_columns"),
        "columns": sum(result["kept_columns"].values()) if result else None,
        "embedding_bytes": result.get("embedding_bytes"),
        "embedding_parameters": result.get("embedding_parameters"),
        "stored_bytes": result.get("stored_bytes"),
        "dense_parameters": result.get("dense_parameters"),
        "validation_auc": result.get("validation_auc"),
        "validation_logloss": result.get("validation_logloss"),
        "epochs": result.get("epochs"),
        "weight_steps": sum(result["weight_steps"].values()) if result else None,
        "seconds": result.get("seconds"),
        "versions": {"ham_dist": starts["ham_dist"], "python": starts["python"], **starts["versions"]},
        "commit": starts["commit"],
        "host": platform.node(),
        "error": error,
    }


def _starts(folder: RunFolder) -> dict[str, Any]:
    """The newest entry of environment.json; the environment of this process if there is none."""
    if folder.environment.exists():
        return dict(read_json(folder.environment)[-1])
    return environment(1, "cpu")
