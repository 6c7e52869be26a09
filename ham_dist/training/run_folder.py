"""A run folder: starting and resuming its run, and checking that settings and data are still the same."""

import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ham_dist.config.load import dump_run, flat, from_flat, keys_missing, load_saved_run
from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.data.format.manifest import Manifest
from ham_dist.errors import CheckpointError
from ham_dist.io import untrusted
from ham_dist.io.atomic import is_temporary, write_json, write_text
from ham_dist.io.paths import is_local
from ham_dist.training.data_record import differences as data_differences
from ham_dist.training.data_record import digest_of, record_of
from ham_dist.training.environment import environment, other_versions
from ham_dist.training.run_identity import FREE, RAISABLE, Change, RunIdentity, changed_settings, listed
from ham_dist.training.run_paths import RunPaths

SECONDS_TO_END = 10.0
"""Longest wait for an earlier start to release the folder, in seconds: a killed process holds the lock until
the operating system has freed its memory."""

STAGES = ("pretrain", "search", "retrain", "quantize")
"""Folders of `checkpoints/`, in the order of the stages."""


class RunFolder(RunPaths):
    """A run folder: started, resumed, and tied to its data. Only one start works in it at a time."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.changes: list[Change] = []
        """Settings that the last `start` changed."""
        self._lock = FileLock(self.path / ".lock", timeout=SECONDS_TO_END)

    def data_folder(self, settings: RunSettings) -> str | Path:
        """Returns the folder of the run's data: `data.path`, or the generated data inside the run folder.

        Raises:
            CheckpointError: The run has begun, and its data is missing.
        """
        path: str | Path = settings.data.path or self.data
        if (whole := self.whole()) is not None and whole.data.exists() and not _is_there(path):
            return whole.data
        if self.data_record.exists() and not _is_there(path):
            raise CheckpointError(
                f"{self.path}: the data of this run was in {path}, and is missing there.\n"
                f"  Put it back, or set data.path to its new folder, in {self.settings} or with "
                "`train --resume --set data.path=FOLDER`"
            )
        return path

    def read_identity(self) -> RunIdentity | None:
        """Returns the identity of the run; None without a run, or for a run of a version without identities.

        Raises:
            CheckpointError: identity.json is damaged.
        """
        if not self.identity.exists():
            return None
        try:
            return RunIdentity.from_json(read_json(self.identity))
        except ValueError as error:
            raise _damaged(self.identity, error) from None

    def read_settings(self, overrides: Sequence[str] = ()) -> RunSettings:
        """Returns the settings in the run's run.toml, or in its identity.json if run.toml is missing.

        Args:
            overrides: `key=value` each, as for `load_run`.
        Raises:
            ConfigError: run.toml cannot be read, or an override cannot be used.
            CheckpointError: run.toml was changed or truncated since the run began.
        """
        identity = self.read_identity()
        if identity is None:
            return load_saved_run(self.settings, overrides)
        if not self.settings.exists():
            return from_flat(identity.settings, str(self.identity), overrides)
        restore = (
            f"Restore it; or remove {self.settings}, "
            f"and `ham-dist train --resume --run-dir {self.path}` writes it again"
        )
        if missing := keys_missing(str(self.settings), identity.settings):
            raise CheckpointError(
                f"{self.settings}: is damaged: keys that the run began with are missing: "
                f"{', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}.\n  {restore}"
            )
        now = RunIdentity(identity.id, flat(load_saved_run(self.settings)))
        if changed := changed_settings(identity.determining, now.determining):
            raise CheckpointError(
                f"{self.settings}: was changed after the run began:{listed(changed)}\n"
                f"  {restore}. For other settings, start another run with another --run-dir"
            )
        return load_saved_run(self.settings, overrides)

    def start(
        self, settings: RunSettings, *, resume: bool, world_size: int, device: str, run_id: str | None = None
    ) -> bool:
        """Lock the folder, and start a run in it or resume the run that it holds. Call it on one rank only.

        With `resume` and no run in the folder the run starts from the beginning, so that a scheduler can
        repeat one command. The folder stays locked until `release`.

        Args:
            run_id: Id of the run of several targets of which this folder holds one; None for a run by itself.
        Returns:
            True if the folder already held this run.
        Raises:
            CheckpointError: The folder holds a run and `resume` is false, holds a run of other settings or
                files that are not a run's, is locked by another process, or cannot be written to.
        """
        self._lock_folder()
        # Without a lock, a run without checkpoints may be one that another process has just started.
        ended_early = self._lock.is_locked and self._ended_early()
        held = self.is_run and (resume or not ended_early)
        if held and not resume:
            raise self._already_held()
        if held:
            identity = self._resumed(settings, run_id)
        else:
            if self.is_run:
                for left in (self.environment, self.log, self.metrics, self.data_record):
                    left.unlink(missing_ok=True)
                shutil.rmtree(self.tensorboard, ignore_errors=True)
            identity = RunIdentity(run_id or secrets.token_hex(16), flat(settings))
        # Written first, as identity.json makes the folder a run: a run that is killed here can be resumed.
        try:
            write_json(self.identity, identity.to_json(), replace=held or ended_early)
        except FileExistsError:
            raise self._already_held() from None
        if not held or self.changes or not self.settings.exists():
            write_text(self.settings, dump_run(settings))
        write_json(self.environment, [*self._starts(), environment(world_size, device)])
        return held

    def release(self) -> None:
        """Unlock the folder if this start has locked it."""
        self._lock.release()

    def other_versions(self) -> list[str]:
        """Returns the packages whose versions differ between the run's first and last start, as text."""
        starts = self._starts()
        return other_versions(starts[0], starts[-1]) if starts else []

    def tie(self, manifest: Manifest) -> None:
        """Record the data that the run begins with, or check that it resumes with the same data.

        Call it on one rank only.

        Raises:
            CheckpointError: The run began with other data.
        """
        if self.data_record.exists():
            self.check_data(manifest)
        else:
            write_json(self.data_record, {"sha256": digest_of(manifest), "manifest": record_of(manifest)})

    def check_data(self, manifest: Manifest) -> None:
        """Check that `manifest` is that of the data that the run began with.

        Raises:
            CheckpointError: It is not; the message lists the differences.
        """
        if not self.data_record.exists():
            return  # the run began with a version that recorded no data
        began = read_json(self.data_record)
        if not isinstance(began, dict) or not isinstance(began.get("manifest"), dict):
            raise _damaged(self.data_record, "it contains no record of data")
        if began.get("sha256") != digest_of(manifest):
            different = data_differences(began["manifest"], manifest)
            raise CheckpointError(
                f"{self.path}: the run began with other data than its data folder holds now:"
                f"{listed(different)}\n  Restore the data that data.json describes, "
                "or start another run on this data with another --run-dir"
            )

    def _ended_early(self) -> bool:
        """True if the run ended before its first checkpoint, mostly for a mistake in its settings."""
        return not (self.checkpoints.exists() or self.result.exists())

    def _already_held(self) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: already holds a run. Resume it with --resume, or give another --run-dir"
        )

    def _lock_folder(self) -> None:
        """Create and lock the folder, until `release` or the end of this process.

        On a file system without locks the folder stays unlocked.
        """
        lock = Path(self._lock.lock_file)
        if self.path.exists() and not self.is_run:
            if not self.path.is_dir():
                raise CheckpointError(f"{self.path}: is a file. Give another --run-dir")
            files = [path.name for path in self.path.iterdir() if path != lock and not is_temporary(path)]
            if files:
                held = self.settings.name if files == [self.settings.name] else min(files)
                raise CheckpointError(
                    f"{self.path}: holds {held}, but no run; a run needs a new or an empty folder. "
                    "Give another --run-dir"
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise CheckpointError(
                f"{self.path}: is locked by another process that runs this run (since {self._last_start()}). "
                "Wait for its end, or stop it and resume with --resume"
            ) from None
        except NotImplementedError:
            pass  # the file system has no locks
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be used as a run folder: {error.strerror}. Give another --run-dir"
            ) from error
        for left_by_a_killed_start in self.path.iterdir():
            if is_temporary(left_by_a_killed_start) and left_by_a_killed_start.is_file():
                left_by_a_killed_start.unlink(missing_ok=True)

    def _starts(self) -> list[dict[str, Any]]:
        """The entries of environment.json, oldest first."""
        if not self.environment.exists():
            return []
        starts = read_json(self.environment)
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            raise _damaged(self.environment, "it contains no list of starts")
        return starts

    def _last_start(self) -> str:
        starts = self._starts()
        return str(starts[-1].get("time")) if starts else "just now"

    def _resumed(self, settings: RunSettings, run_id: str | None) -> RunIdentity:
        """The identity of the run in this folder, resumed with `settings`."""
        identity = self.read_identity() or self._identity_of_earlier_version(run_id)
        if run_id is not None and identity.id != run_id:
            raise CheckpointError(
                f"{self.path}: is a target of another run (id {identity.id}, this run has {run_id}). "
                "Remove it to search again, or restore the folder of this run"
            )
        given = flat(settings)
        self.changes = changed_settings(identity.settings, given)
        refused = list(self._refusals(identity))
        if refused:
            raise CheckpointError(
                f"{self.path}: cannot be resumed with other settings than it began with:{listed(refused)}\n"
                f"  `ham-dist train --resume --run-dir {self.path}` uses the settings of the run; "
                "for other settings, give another --run-dir"
            )
        return RunIdentity(identity.id, given, identity.earlier)

    def _refusals(self, identity: RunIdentity) -> Iterator[str]:
        """One line for each change that the run cannot be resumed with."""
        for change in self.changes:
            stage = RAISABLE.get(change.key)
            if change.key == "data.path":
                if not self.data_record.exists():
                    yield f"{change} (no data.json shows that it is the same data)"
                elif change.new is None and self.whole() is None:
                    yield str(change)
            elif stage is not None:
                if change.new < change.old:
                    yield f"{change} (it can only be raised)"
                elif after := self._file_after(stage, identity):
                    yield f"{change} (it can be raised until {stage} has ended, and {after} is there)"
            elif not change.key.startswith(FREE):
                yield str(change)

    def _file_after(self, stage: str, identity: RunIdentity) -> Path | None:
        """A checkpoint folder of a later stage, a bundle or a result, of any target; None if there is none.

        It was made from the weights at the end of `stage`.
        """
        targets = [Target(**target) for target in identity.settings["search.targets"]]
        later = STAGES[STAGES.index(stage) + 1 :]
        return next(
            (
                path
                for folder in (*(self.of_target(target, targets) for target in targets), *self.branches())
                for path in (*(folder.checkpoints / name for name in later), folder.result, folder.bundle)
                if path.exists()
            ),
            None,
        )

    def _identity_of_earlier_version(self, run_id: str | None) -> RunIdentity:
        """An identity for a run without identity.json: that of its checkpoints, else a new one."""
        settings = flat(load_saved_run(self.settings))
        for path in sorted(self.checkpoints.glob("*/*/values.json")):
            try:
                # Version 0.1.0 wrote -Infinity for the best AUC before the first one.
                mark = untrusted.read_json(path, finite=False)["values"]["run"]
                return RunIdentity(mark["id"], settings | mark["settings"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # damaged, or written by a version without identities
        return RunIdentity(run_id or secrets.token_hex(16), settings, earlier=True)


def default_run_dir(settings: RunSettings) -> Path:
    """Returns runs/<dataset>-<model>-<seed>-<time>-<process>, the folder of a run without --run-dir."""
    dataset = Path(settings.data.path).name if settings.data.path else "synthetic"
    return (
        Path("runs")
        / f"{dataset}-{settings.model.name}-{settings.seed}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    )


def read_json(path: Path) -> Any:
    """Returns the JSON value in a file of a run folder.

    Raises:
        CheckpointError: The file is damaged or cannot be read.
    """
    try:
        return untrusted.read_json(path)
    except (ValueError, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: object) -> CheckpointError:
    return CheckpointError(
        f"{path}: is damaged: {error}. Remove it, and `ham-dist train --resume --run-dir {path.parent}` "
        "resumes without it"
    )


def _is_there(path: str | Path) -> bool:
    return not is_local(path) or Path(path).exists()
