"""A run folder is the whole truth of a run: what is in it, under which names, and who may write to it."""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import ham_dist
from ham_dist.config.load import differences, dump_run, load_run
from ham_dist.config.schema import RunSettings, Target
from ham_dist.data.format.manifest import Manifest
from ham_dist.errors import CheckpointError
from ham_dist.io import untrusted
from ham_dist.io.atomic import write_json, write_text
from ham_dist.training.data_record import differences as data_differences
from ham_dist.training.data_record import digest_of, record_of

PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy", "pyarrow", "duckdb")
"""Packages whose versions can change a run's numbers."""

WITHOUT_EFFECT = ("checkpoint.", "ranks.")
"""Sections of the settings that change no number of a run: it may go on with others."""

SECONDS_TO_END = 10.0
"""A start of a run waits so long for one before it to let the folder go: a process that was killed keeps it until its memory is given back."""


class RunFolder:
    """The files of one run. The properties are names: nothing is created or read by asking for one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path / ".lock", timeout=SECONDS_TO_END)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def settings(self) -> Path:
        """run.toml: the run's settings with every default filled in."""
        return self.path / "run.toml"

    @property
    def environment(self) -> Path:
        """environment.json: versions, machine and command of each start of the run."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """log.txt: what the run said, with times."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl: one object a line with stage, epoch, step and values."""
        return self.path / "metrics.jsonl"

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
        """checkpoints/: where a run goes on from."""
        return self.path / "checkpoints"

    @property
    def diverged(self) -> Path:
        """diverged/: batches whose loss was not finite, each rank's part as safetensors."""
        return self.path / "diverged"

    @property
    def sizes(self) -> Path:
        """sizes.json: each table before and after the search."""
        return self.path / "sizes.json"

    @property
    def bundle(self) -> Path:
        """bundle/: what serving gets."""
        return self.path / "bundle"

    @property
    def result(self) -> Path:
        """result.json: the run's final numbers; there once the run is done."""
        return self.path / "result.json"

    @property
    def data_record(self) -> Path:
        """data.json: the manifest of the data that the run began with, and its digest."""
        return self.path / "data.json"

    @property
    def data(self) -> Path:
        """data/: the generated data set of a run that names no data."""
        return self.path / "data"

    def of_target(self, target: Target, targets: Sequence[Target]) -> "RunFolder":
        """Where a run of `targets` keeps one of them: this folder itself for a run of one, a run folder within it for each of several."""
        return self if len(targets) == 1 else RunFolder(self.path / target.label)

    def whole(self) -> "RunFolder | None":
        """The run of several targets of which this folder holds one; None where this folder is a run by itself."""
        above = RunFolder(self.path.resolve().parent)
        return above if above.settings.exists() else None

    def start(self, settings: RunSettings, *, resume: bool, world_size: int, device: str) -> bool:
        """Claim the folder for a run, or go on with the run that it holds; call it on one rank only. Other starts stay out of it until `release`.

        With `resume` and no run in the folder the run starts from the beginning, so that a scheduler can repeat one command.

        returns: whether the folder already held this run.
        raises:  CheckpointError if the folder holds a run and `resume` is false, a run that another process is at, a run of other settings, or files
                 that are no run's, or cannot be written to.
        """
        self._claim()
        # A run that ended before its first checkpoint, mostly for a mistake in its settings: there is nothing to go on from.
        ended_early = (
            self.settings.exists()
            and self.environment.exists()
            and not (self.checkpoints.exists() or self.result.exists())
        )
        held = self.settings.exists() and (resume or not ended_early)
        if held:
            self._check_same_run(settings, resume)
        elif ended_early:
            for left in (self.environment, self.log, self.metrics, self.data_record):
                left.unlink(missing_ok=True)
            shutil.rmtree(self.tensorboard, ignore_errors=True)
        if not held:
            # The first thing written, since run.toml is what makes a folder a run: one that is killed here can be resumed.
            write_text(self.settings, dump_run(settings))
        starts = read_json(self.environment) if self.environment.exists() else []
        write_json(self.environment, [*starts, environment(world_size, device)])
        return held

    def release(self) -> None:
        """Let other starts in, if this one has claimed the folder."""
        self._lock.release()

    def tie(self, manifest: Manifest) -> None:
        """Note the data that the run begins with, or check that it goes on with the same; call it on one rank only."""
        if self.data_record.exists():
            self.check_data(manifest)
        else:
            write_json(self.data_record, {"sha256": digest_of(manifest), "manifest": record_of(manifest)})

    def check_data(self, manifest: Manifest) -> None:
        """raises: CheckpointError that names the parts in which the data that the run began with differs from data with this manifest."""
        if not self.data_record.exists():
            return  # a run that began before runs kept one
        began: dict[str, Any] = read_json(self.data_record)
        if began["sha256"] != digest_of(manifest):
            listed = "\n  ".join(data_differences(began["manifest"], manifest))
            raise CheckpointError(
                f"{self.path}: the run began with other data than is there now:\n  {listed}\n"
                "  Put the data of its data.json back, or start another run on this data with another --run-dir"
            )

    def _claim(self) -> None:
        """Make the folder, and keep all other starts of a run out of it until `release` or the end of this process."""
        lock = Path(self._lock.lock_file)
        if (
            self.path.exists()
            and not self.settings.exists()
            and not (self.path.is_dir() and set(self.path.iterdir()) <= {lock})
        ):
            raise CheckpointError(f"{self.path}: is in use, and not by a run. Give another --run-dir")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise CheckpointError(
                f"{self.path}: another process is at this run (since {self._last_start()}). Let it end, or stop it and go on by --resume"
            ) from None
        except NotImplementedError:
            pass  # a file system without locks
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be made a run folder: {error.strerror}. Give another --run-dir"
            ) from error

    def _last_start(self) -> str:
        return str(read_json(self.environment)[-1]["time"]) if self.environment.exists() else "just now"

    def _check_same_run(self, settings: RunSettings, resume: bool) -> None:
        if not resume:
            raise CheckpointError(
                f"{self.path}: already holds a run. Go on with it by --resume, or give another --run-dir"
            )
        changed = differences(load_run(str(self.settings)), settings)
        if changed and all(line.startswith(WITHOUT_EFFECT) for line in changed):
            write_text(self.settings, dump_run(settings))
        elif changed:
            listed = "\n  ".join(changed)
            raise CheckpointError(
                f"{self.path}: --resume needs the settings that the run began with, and these are others:\n  {listed}\n"
                f"  `ham-dist train --resume --run-dir {self.path}` takes them from its run.toml; for other settings give another --run-dir"
            )


def default_run_dir(settings: RunSettings) -> Path:
    """runs/<dataset>-<model>-<seed>-<time>-<process>, for a run that was given no folder."""
    dataset = Path(settings.data.path).name if settings.data.path else "synthetic"
    return (
        Path("runs")
        / f"{dataset}-{settings.model.name}-{settings.seed}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    )


def environment(world_size: int, device: str) -> dict[str, Any]:
    """What the numbers of a run may depend on besides its settings.

    world_size: ranks; device: `cpu` or the name of the GPU.
    """
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "ham_dist": ham_dist.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "device": device,
        "world_size": world_size,
    }


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    raises: CheckpointError if it is damaged.
    """
    try:
        return untrusted.read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is damaged: {error}. Remove it, and `ham-dist train --resume --run-dir {path.parent}` goes on without it"
        ) from None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree that runs, `-dirty` where it was changed since; None where ham_dist is not run from its repository."""
    source = Path(ham_dist.__file__).parent
    git = ["git", "-C", str(source)]
    try:
        # An installed copy may lie in a folder of another repository: ask whether git keeps this very file.
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", "__init__.py"], check=True, capture_output=True, timeout=10
        )
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
