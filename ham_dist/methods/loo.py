"""Leave-one-out: the exact change of the validation loss when one column of the supernet is closed.

It is the quantity that first-order scores approximate, and so their reference; Molchanov et al., "Pruning
convolutional neural networks for resource efficient inference" (ICLR 2017), call it the oracle. It is exact
for one closed column. For several together it ignores how they interact, as every score per column does.

Cost: S + 1 forward passes over the split. MovieLens-1M with 91 columns: 92 passes over 100,000 samples. With
1,000 columns and 10 million samples it is 10^10 samples: use `sseds` there.
"""

from collections.abc import Iterator
from typing import Literal

import torch

from ham_dist.config.base import ClosedValue
from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import MaskLoss, Method, SearchSpace

RESOLUTION = 2.0**-40
"""Differences of losses are rounded to multiples of this (about 1e-12). Smaller ones are rounding errors of
float64, which depend on the number of ranks, and would order columns that have no effect at all."""


class LeaveOneOutSettings(MethodSettings):
    """Leave-one-out: the exact rise of the validation loss when a column is closed; for small tables."""

    name: Literal["loo"] = "loo"
    closed: ClosedValue = "zero"
    """Value of a closed column. `zero`: 0, as after slicing; `mean`: the mean of the column over the batch,
    so that a column without variance has no effect; `shuffled`: its value in another row of the batch, drawn
    at random, as for permutation importance."""


class LeaveOneOut(Method):
    """Keeps the columns without which the loss on validation rises most, each closed alone.

    Attributes:
        scores: Mean log loss with the column closed, minus that with all open, (S,) float32; zeros before
            `score`.
    """

    Settings = LeaveOneOutSettings
    settings: LeaveOneOutSettings
    searches = False
    reads_data = True

    def __init__(self, space: SearchSpace, settings: LeaveOneOutSettings) -> None:
        super().__init__(space, settings)
        self.scores = torch.zeros(space.layout.size)

    @property
    def passes(self) -> int:
        """One with all columns open, and one for each column."""
        return self.space.layout.size + 1

    @property
    def closed(self) -> ClosedValue:
        """The setting `closed`."""
        return self.settings.closed

    def score(self, losses: Iterator[MaskLoss]) -> None:
        """Computes the loss of every batch with all columns open, and with each column closed."""
        size = self.space.layout.size
        opened = torch.ones(size, device=self.space.device)
        total, rows = torch.zeros(size, dtype=torch.float64), 0
        for loss in losses:
            whole = loss.at(opened)
            for column in range(size):
                mask = opened.clone()
                mask[column] = 0.0
                total[column] += loss.rows * RESOLUTION * round((loss.at(mask) - whole) / RESOLUTION)
            rows += loss.rows
        self.scores.copy_(total / rows)

    def choice(self) -> torch.Tensor:
        """Returns the columns in decreasing order of score, as many as fit into the budget."""
        return self.space.budget.best(self.scores)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the scores."""
        return {"scores": self.scores}
