"""Progress of a stage."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ham_dist.training.stopping import EarlyStopper


@dataclass
class Counts:
    """Columns (or bytes) in use over the steps of one epoch of search; all 0 before the first step.

    Attributes:
        steps: Steps counted.
        last: Count after the latest step.
        lowest: Smallest count of the epoch.
        highest: Largest count of the epoch.
    """

    steps: int = 0
    last: int = 0
    lowest: int = 0
    highest: int = 0

    def saw(self, used: int) -> None:
        """Add the count after one step."""
        self.lowest = min(self.lowest, used) if self.steps else used
        self.highest = max(self.highest, used)
        self.last = used
        self.steps += 1

    def reached(self, limit: int) -> bool:
        """True if the count reached or crossed `limit` in the epoch."""
        return self.lowest <= limit <= self.highest


@dataclass
class StageProgress:
    """Progress of one stage, from which a resumed run continues; the same on every rank, except the times.

    Attributes:
        stopper: Early stopping by validation AUC.
        epochs: Finished epochs; 0 at the start of the stage.
        steps: Finished steps of the current epoch.
        loss: Sum of the mean log losses of the global batches of those steps.
        counts: Columns in use over those steps; search only.
        samples: Training samples processed in the stage.
        seconds: Time spent over all starts of the run, in seconds.
        training_seconds: The part of `seconds` spent on training steps.
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
        """Add the time since the last call to `seconds`."""
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now

    def finish_step(self, loss: float, samples: int) -> None:
        """Count a finished step on a global batch of `samples` rows with the mean log loss `loss`."""
        self.steps += 1
        self.loss += loss
        self.samples += samples

    def finish_epoch(self, auc: float, *, counts: bool = True) -> None:
        """Count a finished epoch with the validation AUC `auc`.

        Args:
            counts: False if the AUC cannot be compared with those before. A search whose column count is far
                from its target has a model of another size; the stopper is reset.
        """
        self.epochs += 1
        self.steps, self.loss, self.counts = 0, 0.0, Counts()
        if counts:
            self.stopper.saw(auc, self.epochs)
        else:
            self.stopper = EarlyStopper(self.stopper.patience)

    def values(self) -> dict[str, Any]:
        """The progress as JSON values; the inverse of `take`."""
        values = asdict(self)
        del values["_since"]
        if self.stopper.best == -math.inf:
            values["stopper"]["best"] = None  # JSON has no infinity
        return values

    def take(self, values: Mapping[str, Any]) -> None:
        """Restore the progress from `values`; the patience stays that of the settings.

        Version 0.1.0 wrote -Infinity, not null, for the best AUC before the first one.
        """
        stopper = {**values["stopper"], "patience": self.stopper.patience}
        if stopper["best"] is None:
            stopper["best"] = -math.inf
        self.stopper = EarlyStopper(**stopper)
        self.counts = Counts(**values["counts"])
        self.epochs, self.steps, self.loss, self.samples = (
            values[name] for name in ("epochs", "steps", "loss", "samples")
        )
        self.seconds, self.training_seconds = values["seconds"], values["training_seconds"]
        self._since = time.perf_counter()


def progress_names() -> set[str]:
    """Returns the keys of `StageProgress.values`."""
    return {entry.name for entry in fields(StageProgress) if entry.name != "_since"}
