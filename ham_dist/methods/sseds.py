"""SSEDS: one pass of gradients of the mask, on the pretrained supernet with every column open.

Qu et al., "Single-shot embedding dimension search in recommender system" (SIGIR 2022, arXiv:2204.03281).

Differences from the paper:
- Its scores are absolute gradients on training batches (`batches = "training"`). The default here is the
  validation split, as first-order scores on the data that the weights were fitted to are near zero.
- Its budget is a share of all columns; here it is `search.targets`.
- The sliced model is trained as `[retrain]` sets it, without further maps from the kept columns to a common
  dim: a model that needs one has its own lift (ham_dist/models/lift.py).
The authors' code was not found, so the reduction over batches is a setting.
"""

from collections.abc import Iterator
from typing import Literal

import torch

from ham_dist.config.base import ClosedValue
from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import MaskLoss, Method, SearchSpace


class SSEDSSettings(MethodSettings):
    """SSEDS: first-order scores of the columns of the pretrained supernet, from one pass over data."""

    name: Literal["sseds"] = "sseds"
    batches: Literal["validation", "training"] = "validation"
    """Split that the gradients are taken on. The paper uses training batches."""
    statistic: Literal["abs_mean", "mean_abs", "mean_square", "signed"] = "abs_mean"
    """Score of a column, from its gradients g on all batches, weighted by their rows: `abs_mean` is |mean of
    g|, `mean_abs` the mean of |g|, `mean_square` the mean of g squared, `signed` minus the mean of g, the
    first-order change of the loss when the column is closed."""
    closed: ClosedValue = "zero"
    """Value of a closed column x, which the gradient at the full mask compares with: its score is that of
    dL/dx (x - value). `zero`: 0; `mean`: the mean of the column over the batch; `shuffled`: its value in
    another row of the batch, drawn at random."""


class SSEDS(Method):
    """Keeps the columns with the largest first-order effect on the loss.

    Attributes:
        scores: (S,) float32; zeros before `score`.
    """

    Settings = SSEDSSettings
    settings: SSEDSSettings
    searches = False
    reads_data = True

    def __init__(self, space: SearchSpace, settings: SSEDSSettings) -> None:
        super().__init__(space, settings)
        self.scores = torch.zeros(space.layout.size)

    @property
    def batches(self) -> Literal["validation", "training"]:
        """The setting `batches`."""
        return self.settings.batches

    @property
    def closed(self) -> ClosedValue:
        """The setting `closed`."""
        return self.settings.closed

    def score(self, losses: Iterator[MaskLoss]) -> None:
        """Takes the statistic of dL/dm, at m = 1, over all batches; each row has the same weight."""
        statistic = self.settings.statistic
        opened = torch.ones(self.space.layout.size, device=self.space.device)
        total, rows = torch.zeros(len(opened), dtype=torch.float64), 0
        for loss in losses:
            gradient = loss.gradient_at(opened).double().cpu()
            if statistic == "mean_abs":
                gradient = gradient.abs()
            elif statistic == "mean_square":
                gradient = gradient.square()
            total += loss.rows * gradient
            rows += loss.rows
        mean = total / rows
        self.scores.copy_({"abs_mean": mean.abs(), "signed": -mean}.get(statistic, mean))

    def choice(self) -> torch.Tensor:
        """Returns the columns in decreasing order of score, as many as fit into the budget."""
        return self.space.budget.best(self.scores)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the scores."""
        return {"scores": self.scores}
