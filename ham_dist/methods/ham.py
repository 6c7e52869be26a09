"""HAM: a hard 0/1 mask over columns, learned through a straight-through gradient (HAM paper, section 3.3)."""

from typing import Literal

import torch

from ham_dist.config.schema import MethodSettings, PositiveFloat, PositiveInt
from ham_dist.methods.method import MaskGradient, Method, SearchSpace


class HamSettings(MethodSettings):
    """HAM: a hard mask, learned by steps on alpha."""

    name: Literal["ham"] = "ham"
    alpha_init: PositiveFloat = 0.01
    """eps: start of every alpha (HAM paper, section 4.3)."""
    alpha_learning_rate: PositiveFloat = 1e-3
    """eta of Eq. 3 (HAM paper, section 4.3)."""
    alpha_every: PositiveInt = 1
    """Training steps to one step on alpha. The paper takes one of each in turn; at `n`, alpha moves n times less in an epoch."""
    penalty: PositiveFloat = 5e-5
    """mu of Eq. 3: how hard the count is pushed to the target (HAM paper, section 4.3)."""


class HardAuxiliaryMask(Method):
    """alpha, one number a column: a column is open where alpha > 0.

    The search starts with every column open, alpha = eps. Each step follows the gradient of the validation loss, and pushes all alphas down
    while more columns are open than the target and up while fewer are, so that the count swings around the target.
    """

    Settings = HamSettings
    settings: HamSettings

    def __init__(self, space: SearchSpace, settings: HamSettings) -> None:
        super().__init__(space, settings)
        self.alpha = torch.full((space.layout.size,), settings.alpha_init, device=space.device)

    @property
    def every(self) -> int:
        """alpha_every."""
        return self.settings.alpha_every

    def warning(self, steps: int) -> str | None:
        """A warning if the penalty alone, which takes alpha_init / penalty steps to close a first column, has too few steps."""
        needed = self.settings.alpha_init / self.settings.penalty
        if steps >= 3 * needed:
            return None
        return (
            f"warning: the search has {steps:,} steps, and the penalty takes about {needed:,.0f} to close the first column. "
            "The columns may be chosen before any was closed: raise search.epochs or search.method.penalty, or lower data.batch_size"
        )

    def mask(self) -> torch.Tensor:
        """1[alpha > 0]."""
        return (self.alpha > 0).float()

    def step(self, gradient_at: MaskGradient) -> None:
        """alpha <- alpha - eta dL/dm - mu sign(|m|_1 - s): Eq. 3, with dL/dalpha taken to be dL/dm (Eq. 2)."""
        mask = self.mask()
        excess = self.space.budget.used(mask) - self.space.budget.limit
        penalty = self.settings.penalty * ((excess > 0) - (excess < 0))
        self.alpha -= self.settings.alpha_learning_rate * gradient_at(mask) + penalty

    def choice(self) -> torch.Tensor:
        """The columns with the highest alpha: the open ones, and at the swing's edge as many fewer or more as the target wants."""
        return self.space.budget.best(self.alpha)

    def tensors(self) -> dict[str, torch.Tensor]:
        """alpha."""
        return {"alpha": self.alpha}
