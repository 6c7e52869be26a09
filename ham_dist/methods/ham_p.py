"""HAM-p: a hard 0/1 mask drawn from Bernoulli probabilities (HAM paper, section 4.2; ProbMask)."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from ham_dist.config.base import PositiveFloat
from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import MaskLoss, SearchSpace
from ham_dist.methods.soft import SampledAlpha

BISECTIONS = 60
"""Halvings of the interval in `projected`: more do not change a float64."""


class HamPSettings(MethodSettings):
    """HAM-p: a hard 0/1 mask drawn from Bernoulli probabilities."""

    name: Literal["ham_p"] = "ham_p"
    alpha_init: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Initial probability of every column. The HAM paper does not state it; its searches start with all
    columns open."""
    alpha_learning_rate: PositiveFloat = 1e-2
    """Learning rate of SGD on the probabilities (HAM paper, section 4.3)."""
    projected: bool = False
    """If true, each step ends with a projection of the probabilities, so that the columns cost no more than
    the budget on average (ProbMask)."""


class BernoulliMask(SampledAlpha):
    """m ~ Bernoulli(alpha), with dL/dm in place of dL/dalpha (straight-through); the highest alphas stay.

    Each step on alpha and each step on the weights has its own draw. Alpha moves by SGD on validation
    batches.

    ProbMask's authors differ, also with `projected`: their number of open weights falls cubically from all to
    the target, in place of the target from the first step; they use Adam at 6e-3, the mean of several draws
    per step, and the gradient of a Gumbel-sigmoid mask on training batches.
    Source: HAM paper, section 4.2 (iii). `projected`: Zhou et al., Effective Sparsification of Neural
    Networks with Global Sparsity Constraint, 2021 (code: x-zho14/ProbMask-official, utils/net_utils.py).
    """

    Settings = HamPSettings
    settings: HamPSettings

    def __init__(self, space: SearchSpace, settings: HamPSettings) -> None:
        super().__init__(space, settings, settings.alpha_init)

    def expected(self) -> torch.Tensor:
        """Returns alpha, the probability of each column."""
        return self.alpha

    def sampled(self, uniform: torch.Tensor) -> torch.Tensor:
        """Returns 1[u < alpha] for u = `uniform`, (S,) float32."""
        return (uniform < self.alpha).float()

    def step(self, loss: MaskLoss) -> None:
        """alpha <- clamp(alpha - lr dL/dm, 0, 1), and then the projection if so set."""
        self.move(-self.settings.alpha_learning_rate * loss.gradient_at(self.mask_of_step()))
        if self.settings.projected:
            self.move(-self._excess())
        self.steps += 1

    def _excess(self) -> torch.Tensor:
        """Returns v costs (S,), with the least v >= 0 for which clamp(alpha - v costs, 0, 1) fits the budget.

        The clamped numbers are the point nearest to alpha whose expected cost is within the budget.
        """
        limit, costs = self.space.budget.limit, self.space.budget.costs.double()
        alpha = self.alpha.double().cpu()
        if alpha @ costs <= limit:
            return torch.zeros_like(self.alpha)
        low, high = 0.0, float((alpha / costs).max())
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            fits = (alpha - middle * costs).clamp(min=0) @ costs <= limit
            low, high = (low, middle) if fits else (middle, high)
        return (high * costs).to(self.alpha)
