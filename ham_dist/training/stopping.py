"""Early stopping."""

from dataclasses import dataclass


@dataclass
class EarlyStopper:
    """Early stopping by validation AUC.

    Attributes:
        patience: Epochs without a better AUC before `done`.
        best: Best validation AUC so far; -inf before the first.
        best_epoch: Finished epochs when it was reached, 0 at the start of the stage; None before the first
            AUC.
        waited: Epochs since then.
    """

    patience: int
    best: float = float("-inf")
    best_epoch: int | None = None
    waited: int = 0

    def saw(self, auc: float, epochs: int) -> None:
        """Add the validation AUC after `epochs` epochs."""
        if auc > self.best:
            self.best, self.best_epoch, self.waited = auc, epochs, 0
        else:
            self.waited += 1

    @property
    def done(self) -> bool:
        """True if the AUC has not improved for `patience` epochs."""
        return self.waited >= self.patience
