"""The checkpoints of a run: one at the end of each epoch of each stage; of a stage the newest two and the best are kept."""

import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ham_dist.distributed import checkpoint, process_group
from ham_dist.errors import CheckpointError
from ham_dist.training.state import TrainingState
from ham_dist.training.stopping import EarlyStopper

EPOCH = re.compile(r"epoch-(\d{4})$")


@dataclass
class StageProgress:
    """How far one stage has come; what a resumed stage goes on from.

    stopper: watches validation AUC.
    epochs:  epochs done; a stage's start is 0.
    samples: training samples seen.
    seconds: time spent, over all starts of the run; training_seconds: of it, on steps alone.
    """

    stopper: EarlyStopper
    epochs: int = 0
    samples: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    _since: float = field(default_factory=time.perf_counter, repr=False)

    def tick(self) -> None:
        """Count the time since the last call."""
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now

    def finish_epoch(self, auc: float, *, counts: bool = True) -> None:
        """One more epoch is done.

        counts: whether its AUC is one to compare with. A search whose column count is far from its target is a model of another size:
                the stopper starts anew there.
        """
        self.epochs += 1
        if counts:
            self.stopper.saw(auc, self.epochs)
        else:
            self.stopper = EarlyStopper(self.stopper.patience)

    def values(self) -> dict[str, Any]:
        """As plain JSON values."""
        values = asdict(self)
        del values["_since"]
        return values

    def take(self, values: Mapping[str, Any]) -> None:
        """The inverse of `values`."""
        self.stopper = EarlyStopper(**values["stopper"])
        self.epochs, self.samples = values["epochs"], values["samples"]
        self.seconds, self.training_seconds = values["seconds"], values["training_seconds"]
        self._since = time.perf_counter()


class StageCheckpoints:
    """The checkpoints of one stage, in a folder of its own.

    folder: `checkpoints/<stage>` of the run folder.
    extra:  tensors beside the training state (a method's alpha), by name; alike on every rank.
    """

    def __init__(self, folder: Path, state: TrainingState, extra: Callable[[], Mapping[str, Any]] = dict) -> None:
        self.folder = folder
        self.state = state
        self._extra = extra

    def save(self, progress: StageProgress) -> None:
        """Keep the state after `progress.epochs` epochs; the one before it and the best stay, others go."""
        progress.tick()
        values = {**progress.values(), "optimizer_steps": self.state.optimizers.steps}
        checkpoint.save(self._path(progress.epochs), self._tensors(), values)
        process_group.on_first_rank(lambda: self._drop_all_but({progress.epochs, progress.epochs - 1, progress.stopper.best_epoch}))

    def resume(self, progress: StageProgress) -> None:
        """Load the newest checkpoint, if there is one, into the state and `progress`."""
        if epochs := process_group.on_first_rank(self._epochs):
            progress.take(self._load(max(epochs)))

    def restore_best(self, progress: StageProgress) -> None:
        """Load the state with the best validation AUC; where the stopper started anew in the last epoch, that is the newest."""
        best = progress.stopper.best_epoch
        self._load(progress.epochs if best is None else best)

    def load_best_weights(self) -> None:
        """Load the model with the best validation AUC, without what only training needs."""
        epochs = process_group.on_first_rank(self._epochs)
        if not epochs:
            raise CheckpointError(f"{self.folder}: holds no checkpoint; `ham-dist train --resume` brings the run to its end")
        newest = max(epochs)
        best = checkpoint.read_values(self._path(newest))["stopper"]["best_epoch"]
        checkpoint.load(self._path(newest if best is None else best), self.state.weights())

    def _load(self, epoch: int) -> dict[str, Any]:
        values = checkpoint.load(self._path(epoch), self._tensors())
        self.state.optimizers.steps = values["optimizer_steps"]
        return values

    def _drop_all_but(self, kept: set[int | None]) -> None:
        for epoch in self._epochs():
            if epoch not in kept:
                shutil.rmtree(self._path(epoch))

    def _tensors(self) -> dict[str, Any]:
        return {**self.state.tensors(), **{f"extra/{name}": values for name, values in self._extra().items()}}

    def _epochs(self) -> list[int]:
        if not self.folder.exists():
            return []
        found = (EPOCH.match(path.name) for path in self.folder.iterdir() if (path / checkpoint.VALUES).exists())
        return sorted(int(match.group(1)) for match in found if match)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}"
