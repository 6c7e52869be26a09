"""When a stage has seen enough epochs."""

from dataclasses import dataclass


@dataclass
class EarlyStopper:
    """Counts the epochs since validation AUC was last better than ever before.

    patience:   epochs without a better one before `done`.
    best:       the best validation AUC so far.
    best_epoch: epochs done when it was reached, 0 being the stage's start; None before the first AUC.
    waited:     epochs since.
    """

    patience: int
    best: float = float("-inf")
    best_epoch: int | None = None
    waited: int = 0

    def saw(self, auc: float, epochs: int) -> None:
        """Take in the validation AUC after `epochs` epochs."""
        if auc > self.best:
            self.best, self.best_epoch, self.waited = auc, epochs, 0
        else:
            self.waited += 1

    @property
    def done(self) -> bool:
        """Whether validation AUC has stopped rising."""
        return self.waited >= self.patience
