"""The checkpoints of a run: at the end of each epoch of each stage, and within epochs as [checkpoint] sets.

`epoch-0003` is the state after three epochs, `epoch-0003-step-00000120` the state 120 steps later. Of each
stage the newest few are kept, and for each of them the one with the best validation AUC up to it.
"""

import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ham_dist.config.schema import CheckpointSettings
from ham_dist.distributed.checkpoint import storage
from ham_dist.distributed.checkpoint.writer import CheckpointWriter, Snapshot
from ham_dist.distributed.ranks import process_group
from ham_dist.errors import CheckpointError, OtherRunError, Preempted
from ham_dist.io.atomic import is_temporary
from ham_dist.training.preemption import Preemption
from ham_dist.training.progress import StageProgress, progress_names
from ham_dist.training.run_identity import RunIdentity
from ham_dist.training.run_log import RunLog
from ham_dist.training.state import TrainingState

NAME = re.compile(r"epoch-(\d{4,})(?:-step-(\d{8,}))?$")

RANDOM = "random/cpu"
"""State of torch's CPU generator, saved once for all ranks: random draws during training must be the same on
all ranks. Nothing draws on a GPU."""


@dataclass(frozen=True, order=True)
class Moment:
    """The position of a checkpoint in its stage: `steps` steps after `epochs` finished epochs."""

    epochs: int
    steps: int = 0

    @property
    def name(self) -> str:
        """Name of the checkpoint's folder."""
        return f"epoch-{self.epochs:04d}" + (f"-step-{self.steps:08d}" if self.steps else "")


@dataclass(frozen=True)
class Saving:
    """The objects for saving checkpoints that all stages of a run share.

    Attributes:
        settings: When to save, and how many checkpoints to keep.
        writer: Writes checkpoints in the background, while training continues.
        preemption: Records SIGTERM.
        identity: Identity of the run, which each checkpoint contains.
    """

    settings: CheckpointSettings
    writer: CheckpointWriter
    preemption: Preemption
    identity: RunIdentity


class StageCheckpoints:
    """The checkpoints of one stage, in a folder of its own. All ranks make the same calls.

    Attributes:
        folder: `checkpoints/<stage>` of the run folder.
        state: The training state that is saved and loaded.
    Args:
        extra: Returns further tensors to save, by name, such as a method's alpha; the same on every rank.
    """

    def __init__(
        self,
        folder: Path,
        state: TrainingState,
        saving: Saving,
        log: RunLog,
        extra: Callable[[], Mapping[str, torch.Tensor]] = dict,
    ) -> None:
        self.folder = folder
        self.state = state
        self._saving = saving
        self._log = log
        self._extra = extra
        self._saved_at = time.monotonic()
        self._unsaved: Snapshot | None = None
        self._warned = False
        self._undeleted: OSError | None = None
        self._warned_of_deletion = False

    def resume(self, progress: StageProgress) -> None:
        """Load the newest complete checkpoint, if there is one, into the state and `progress`.

        Raises:
            OtherRunError: A checkpoint belongs to another run.
            CheckpointError: There are checkpoints, but none can be loaded.
        """
        failure: CheckpointError | None = None
        for moment in process_group.on_first_rank(lambda: moments(self.folder))[::-1]:
            try:
                values = self._load(moment)
                if not self._can_end(moment, values["stopper"]["best_epoch"]):
                    raise CheckpointError(
                        f"{self.folder / moment.name}: the checkpoint of its best epoch, "
                        f"{values['stopper']['best_epoch']}, is missing."
                    )
                progress.take(values)
            except OtherRunError:
                raise
            except CheckpointError as error:
                failure = error
                self._log.say(f"warning: {error}\n  Skipping it.")
            else:
                if failure is not None:
                    self._log.say(f"resumed from {self.folder / moment.name}")
                return
        if failure is not None:
            raise CheckpointError(
                f"{self.folder}: none of the checkpoints can be loaded. "
                f"Remove the folder to run the stage again. {failure}"
            )

    def wishes(self, progress: StageProgress) -> tuple[bool, bool]:
        """Returns whether this rank requests a checkpoint after this step, and whether it must stop."""
        settings = self._saving.settings
        by_steps = settings.every_steps > 0 and (progress.steps + 1) % settings.every_steps == 0
        by_clock = (
            settings.every_minutes > 0
            and process_group.rank() == 0
            and time.monotonic() - self._saved_at >= 60 * settings.every_minutes
        )
        return by_steps or by_clock, self._saving.preemption.requested

    def after_step(self, progress: StageProgress, *, wanted: bool, stop: bool) -> None:
        """Save a checkpoint within an epoch if a rank requested it before the step.

        Args:
            wanted: A rank requested a checkpoint.
            stop: A rank received SIGTERM.
        Raises:
            Preempted: `stop` was set; raised after saving.
        """
        if wanted or stop:
            self._save(progress)
        if stop:
            self._stop()

    def save(self, progress: StageProgress) -> None:
        """Save a checkpoint at the end of an epoch.

        Raises:
            Preempted: A rank received SIGTERM; raised after saving.
        """
        self._save(progress)
        if any(process_group.gather_objects(self._saving.preemption.requested)):
            self._stop()

    def restore_best(self, progress: StageProgress) -> None:
        """Load the state with the best validation AUC.

        That is the newest state if the stopper was reset in the last epoch.

        Raises:
            CheckpointError: The checkpoint could not be written, or is damaged.
        """
        self._settle()
        best = _best(progress.stopper.best_epoch, progress.epochs)
        if not self._is_kept(best):
            raise CheckpointError(
                f"{self.folder / best.name}: could not be written, and the stage's result would be lost. "
                "Make room there; --resume continues from the checkpoint before it"
            )
        self._load(best)

    def _save(self, progress: StageProgress) -> None:
        self._settle()
        progress.tick()
        moment = Moment(progress.epochs, progress.steps)
        self._saved_at = time.monotonic()
        if not self._can_end(moment, progress.stopper.best_epoch):
            return
        self._unsaved = None
        values = {
            **progress.values(),
            "optimizer_steps": self.state.optimizers.steps,
            "run": self._saving.identity.mark(),
        }
        snapshot = self._saving.writer.snapshot(self.folder / moment.name, self._tensors(), values)
        self._saving.writer.start(snapshot, lambda: self._drop_all_but_newest(moment))

    def _drop_all_but_newest(self, newest: Moment) -> None:
        """Delete older checkpoints. Called in the writing thread of the first rank: it only keeps errors."""
        try:
            drop_all_but_newest(self.folder, newest, self._saving.settings.keep)
            self._undeleted = None
        except OSError as error:
            self._undeleted = error

    def _settle(self) -> None:
        """Wait for the write in progress.

        A failure is reported once, until a write succeeds. A failed checkpoint of the end of an epoch is kept
        in memory, as it may be the best. A failure to delete older checkpoints is reported in the same way.
        """
        if not self._saving.writer.is_writing:
            return
        failed = self._saving.writer.settle()
        if self._undeleted is not None and not self._warned_of_deletion:
            self._log.say(
                f"warning: {self.folder}: old checkpoints cannot be deleted ({self._undeleted}).\n"
                "  Training continues, and the next checkpoint tries again. Check permissions and disk."
            )
        self._warned_of_deletion = self._undeleted is not None
        if failed is None:
            self._warned = False
            return
        if failed.snapshot.copied and failed.snapshot.values["steps"] == 0:
            self._unsaved = failed.snapshot
        if not self._warned:
            self._log.say(
                f"warning: {failed.error}\n  Training continues; the next checkpoint will be tried as usual."
            )
            self._warned = True

    def _can_end(self, moment: Moment, best_epoch: int | None) -> bool:
        """True if a stage resumed from `moment` could end, which needs the checkpoint of its best epoch.

        `best_epoch` is None before there is a best epoch.
        """
        return best_epoch is None or Moment(best_epoch) == moment or self._is_kept(Moment(best_epoch))

    def _is_kept(self, moment: Moment) -> bool:
        """True if the checkpoint is on the disk; one whose write failed is written again first."""
        path = self.folder / moment.name
        if self._unsaved is not None and self._unsaved.path == path:
            unsaved, self._unsaved = self._unsaved, None
            self._saving.writer.start(unsaved, lambda: None)
            self._settle()
        return process_group.on_first_rank((path / storage.VALUES).exists)

    def _stop(self) -> None:
        self._settle()
        kept = (
            "The newest checkpoint could not be written; an earlier one is kept if there was one."
            if self._warned
            else "The last checkpoint is kept."
        )
        raise Preempted(
            f"ended by SIGTERM. {kept} To resume from it, run the same command with --run-dir and --resume"
        )

    def _load(self, moment: Moment) -> dict[str, Any]:
        tensors = self._tensors()
        path = self.folder / moment.name
        values = storage.load(path, tensors, partial(self._saving.identity.require_own, str(path)))
        if missing := progress_names() - values.keys():
            raise CheckpointError(
                f"{self.folder / moment.name}: is of another version of ham_dist: "
                f"{storage.VALUES} has no {', '.join(sorted(missing))}"
            )
        torch.set_rng_state(tensors[RANDOM])
        self.state.optimizers.steps = values["optimizer_steps"]
        return values

    def _tensors(self) -> dict[str, Any]:
        extra = {f"extra/{name}": values for name, values in self._extra().items()}
        return {**self.state.tensors(), **extra, RANDOM: torch.get_rng_state()}


def load_best_weights(folder: Path, state: TrainingState, identity: RunIdentity | None = None) -> None:
    """Load the model with the best validation AUC of a finished stage, without optimizer state.

    Args:
        folder: `checkpoints/<stage>` of the run folder.
        identity: Identity of the run; None accepts checkpoints of any run.
    Raises:
        OtherRunError: The checkpoints belong to another run.
        CheckpointError: There is no checkpoint, or it is damaged.
    """
    found = process_group.on_first_rank(lambda: moments(folder))
    if not found:
        raise CheckpointError(f"{folder}: holds no checkpoint; `ham-dist train --resume` finishes the run")
    values = storage.read_values(folder / found[-1].name)
    best = _best(values["stopper"]["best_epoch"], values["epochs"])
    path = folder / best.name
    if identity is None:
        storage.load(path, state.weights())
    else:
        storage.load(path, state.weights(), partial(identity.require_own, str(path)))


def moments(folder: Path) -> list[Moment]:
    """Returns the checkpoints in a stage's folder, oldest first."""
    if not folder.exists():
        return []
    found = (NAME.match(path.name) for path in folder.iterdir() if (path / storage.VALUES).exists())
    return sorted(Moment(int(match[1]), int(match[2] or 0)) for match in found if match)


def drop_all_but_newest(folder: Path, newest: Moment, keep: int) -> None:
    """Delete all checkpoints except the newest `keep` up to `newest` and the best one up to each of these.

    Those after `newest` are deleted too: they are of an earlier start that was resumed from a checkpoint
    before them.

    Raises:
        OSError: The folder cannot be read, or a checkpoint cannot be deleted; the others are deleted.
    """
    found = moments(folder)
    kept = [moment for moment in found if moment <= newest][-keep:]
    best = {_best_of(folder / moment.name, moment) for moment in kept}
    left_by_a_killed_run = [path for path in folder.iterdir() if is_temporary(path)]
    failure: OSError | None = None
    for path in [folder / moment.name for moment in set(found) - set(kept) - best] + left_by_a_killed_run:
        try:
            shutil.rmtree(path)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure


def _best_of(path: Path, moment: Moment) -> Moment:
    try:
        best_epoch = storage.values_of(path)["values"]["stopper"]["best_epoch"]
    except (CheckpointError, KeyError, TypeError):
        return moment  # damaged: it is skipped on resuming
    return _best(best_epoch, moment.epochs)


def _best(best_epoch: int | None, epochs: int) -> Moment:
    return Moment(epochs if best_epoch is None else best_epoch)
