"""How far a stage has come."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ham_dist.training.stopping import EarlyStopper


@dataclass
class Counts:
    """What the open columns took of the budget, over the steps of one epoch of search; all 0 before the first."""

    steps: int = 0
    last: int = 0
    lowest: int = 0
    highest: int = 0

    def saw(self, used: int) -> None:
        """Take in one step's."""
        self.lowest = min(self.lowest, used) if self.steps else used
        self.highest = max(self.highest, used)
        self.last = used
        self.steps += 1

    def reached(self, limit: int) -> bool:
        """Whether the count was at `limit` in the epoch, or went past it."""
        return self.lowest <= limit <= self.highest


@dataclass
class StageProgress:
    """How far one stage has come; what a resumed stage goes on from. The same on every rank, but for the clock.

    stopper: watches validation AUC.
    epochs:  epochs done; a stage's start is 0.
    steps:   steps done of the epoch after them.
    loss:    sum over those steps of the global batch's mean log loss.
    counts:  of those steps; for the search alone.
    samples: training samples seen.
    seconds: time spent, over all starts of the run; training_seconds: of it, on steps alone.
    """

    stopper: EarlyStopper
    epochs: int = 0
    steps: int = 0
    loss: float = 0.0
    counts: Counts = field(default_factory=Counts)
    samples: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    _since: float = field(default_factory=time.perf_counter, repr=False)

    def tick(self) -> None:
        """Count the time since the last call."""
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now

    def finish_step(self, loss: float, samples: int) -> None:
        """One more step is done, over a global batch of `samples` rows with the mean log loss `loss`."""
        self.steps += 1
        self.loss += loss
        self.samples += samples

    def finish_epoch(self, auc: float, *, counts: bool = True) -> None:
        """One more epoch is done.

        counts: whether its AUC is one to compare with. A search whose column count is far from its target is a model of another size:
                the stopper starts anew there.
        """
        self.epochs += 1
        self.steps, self.loss, self.counts = 0, 0.0, Counts()
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
        """The inverse of `values`, but for the patience, which stays that of the settings."""
        self.stopper = EarlyStopper(**{**values["stopper"], "patience": self.stopper.patience})
        self.counts = Counts(**values["counts"])
        self.epochs, self.steps, self.loss, self.samples = (
            values[name] for name in ("epochs", "steps", "loss", "samples")
        )
        self.seconds, self.training_seconds = values["seconds"], values["training_seconds"]
        self._since = time.perf_counter()


def progress_names() -> set[str]:
    """What `StageProgress.values` holds."""
    return {entry.name for entry in fields(StageProgress) if entry.name != "_since"}
