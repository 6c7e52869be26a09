"""Names of the files in a run folder, and the folders of a run of several targets."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from ham_dist.config.target import Target

_TARGET_NAME = re.compile(r"columns-\d+|bytes-\d+(-[a-z0-9]+)?")
"""Names of the folders of targets (`Target.label`)."""

BRANCHES = "branches"
"""Folder of a run with the folders of its branches, if they differ in more than their targets."""


class RunPaths:
    """The paths of the files of one run. The properties are names: they create and read nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def settings(self) -> Path:
        """run.toml: the run's settings with every default filled in."""
        return self.path / "run.toml"

    @property
    def identity(self) -> Path:
        """identity.json: the run's random id and its settings, with which its checkpoints are compared."""
        return self.path / "identity.json"

    @property
    def environment(self) -> Path:
        """environment.json: versions, machine and command of each start of the run."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """log.txt: messages of the run, with times."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl: one JSON object per line, with stage, epoch, step and values."""
        return self.path / "metrics.jsonl"

    @property
    def search_trace(self) -> Path:
        """search.jsonl: columns in use and the method's numbers at up to 500 steps of the search."""
        return self.path / "search.jsonl"

    @property
    def tensorboard(self) -> Path:
        """tensorboard/: the values of metrics.jsonl as TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def plan(self) -> Path:
        """plan.json: which rank holds which table."""
        return self.path / "plan.json"

    @property
    def checkpoints(self) -> Path:
        """checkpoints/: the states that a run can resume from."""
        return self.path / "checkpoints"

    @property
    def diverged(self) -> Path:
        """diverged/: batches whose loss was not finite; each rank's part as safetensors."""
        return self.path / "diverged"

    @property
    def sizes(self) -> Path:
        """sizes.json: each table before and after the search."""
        return self.path / "sizes.json"

    @property
    def bundle(self) -> Path:
        """bundle/: the exported model for serving."""
        return self.path / "bundle"

    @property
    def result(self) -> Path:
        """result.json: the run's final numbers; written when the run is finished."""
        return self.path / "result.json"

    @property
    def validation(self) -> Path:
        """validation.safetensors: logits and labels of validation rows, to compare models with."""
        return self.path / "validation.safetensors"

    @property
    def frontier(self) -> Path:
        """frontier.json: size and validation AUC of each target of a run; see `ham_dist.stages.frontier`."""
        return self.path / "frontier.json"

    @property
    def data_record(self) -> Path:
        """data.json: the manifest of the data that the run began with, and its digest."""
        return self.path / "data.json"

    @property
    def data(self) -> Path:
        """data/: the generated data set of a run that names no data."""
        return self.path / "data"

    @property
    def is_run(self) -> bool:
        """True if a run was started in the folder; a run.toml alone may be the user's own file."""
        return self.identity.exists() or (
            self.settings.exists() and (self.environment.exists() or self.checkpoints.exists())
        )

    def of_target(self, target: Target, targets: Sequence[Target]) -> Self:
        """Returns the folder of a target: this folder if the run has only one, else a folder inside it."""
        return self if len(targets) == 1 else type(self)(self.path / target.label)

    def branches(self) -> list[Self]:
        """Returns the folders of the run's branches, by name."""
        return [type(self)(path) for path in sorted(self.path.glob(f"{BRANCHES}/*"))]

    def whole(self) -> Self | None:
        """Returns the run of which this folder holds one target or branch; None for a run by itself."""
        path = self.path.resolve()
        if _TARGET_NAME.fullmatch(path.name):
            above = type(self)(path.parent)
        elif path.parent.name == BRANCHES:
            above = type(self)(path.parent.parent)
        else:
            return None
        return above if above.is_run else None
