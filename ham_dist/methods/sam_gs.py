"""SAM-GS: a soft mask with random noise, by the Gumbel-sigmoid function (HAM paper, section 4.2)."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from ham_dist.config.base import PositiveFloat
from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import MaskLoss, SearchSpace
from ham_dist.methods.soft import SampledAlpha

EDGE = 1e-3
"""Distance of alpha from 0 and 1, where its logit is not finite."""


class SamGsSettings(MethodSettings):
    """SAM-GS: a soft mask with random noise, by the Gumbel-sigmoid function."""

    name: Literal["sam_gs"] = "sam_gs"
    alpha_init: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Initial value of every alpha. The HAM paper does not state it; its searches start with open columns."""
    alpha_learning_rate: PositiveFloat = 1e-2
    """Learning rate of SGD on alpha (HAM paper, section 4.3)."""
    temperature: PositiveFloat = 0.1
    """lambda: the lower, the closer the sampled mask is to 0 and 1. The HAM paper chooses it from 1, 0.1 and
    0.01 (section 4.3), and does not state which."""


class GumbelSigmoidMask(SampledAlpha):
    """m = sigmoid((logit(alpha) + logit(u)) / lambda) with u ~ Uniform(0, 1); the highest alphas stay.

    Each step on alpha and each step on the weights has its own u. Alpha moves by SGD on validation batches,
    through the derivative of m with respect to alpha at fixed u.

    Without noise the mask is alpha: that is m at lambda = 1 and u = 1/2, as Louizos et al. (2018, section
    2.2) evaluate it, and the mean of m as lambda goes to 0. The kept columns of the tables are multiplied by
    it when they are sliced.
    Source: HAM paper, section 4.2 (ii). No public code of its authors is known. Louizos et al. (L0
    regularization) learn the logit, stretch the mask so that it reaches 0 and 1, and add a penalty.
    """

    Settings = SamGsSettings
    settings: SamGsSettings

    def __init__(self, space: SearchSpace, settings: SamGsSettings) -> None:
        super().__init__(space, settings, settings.alpha_init, EDGE, 1 - EDGE)

    def expected(self) -> torch.Tensor:
        """Returns alpha."""
        return self.alpha

    def sampled(self, uniform: torch.Tensor) -> torch.Tensor:
        """Returns m for u = `uniform`."""
        return torch.sigmoid((torch.logit(self.alpha) + torch.logit(uniform)) / self.settings.temperature)

    def step(self, loss: MaskLoss) -> None:
        """alpha <- alpha - lr dL/dm dm/dalpha, with dm/dalpha = m (1 - m) / (lambda alpha (1 - alpha))."""
        mask = self.mask_of_step()
        slope = mask * (1 - mask) / (self.settings.temperature * self.alpha * (1 - self.alpha))
        self.move(-self.settings.alpha_learning_rate * loss.gradient_at(mask) * slope)
        self.steps += 1

    def fold(self) -> torch.Tensor:
        """Returns alpha."""
        return self.alpha.clone()
