"""When a stage has seen enough epochs."""

from dataclasses import dataclass


@dataclass
class EarlyStopper:
    """Counts the epochs since validation AUC was last better than ever before.

    patience:   epochs without a better one before `done`.
    best:       the best validation AUC so far.
    best_epoch: the epoch that reached it, from 0; -1 before the first.
    waited:     epochs since.
    """

    patience: int
    best: float = float("-inf")
    best_epoch: int = -1
    waited: int = 0

    def saw(self, auc: float, epoch: int) -> bool:
        """Take in one epoch; says whether it is the best so far."""
        if auc > self.best:
            self.best, self.best_epoch, self.waited = auc, epoch, 0
            return True
        self.waited += 1
        return False

    @property
    def done(self) -> bool:
        """Whether validation AUC has stopped rising."""
        return self.waited >= self.patience
