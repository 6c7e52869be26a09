"""HAM: a hard 0/1 mask over columns, learned through a straight-through gradient (HAM paper, section 3.3)."""

from typing import Literal

import torch

from ham_dist.config.base import PositiveFloat, PositiveInt
from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import MaskLoss, Method, SearchSpace


class HamSettings(MethodSettings):
    """HAM: a hard 0/1 mask, learned by steps on alpha."""

    name: Literal["ham"] = "ham"
    alpha_init: PositiveFloat = 0.01
    """eps: initial value of every alpha (HAM paper, section 4.3)."""
    alpha_learning_rate: PositiveFloat = 1e-3
    """eta of Eq. 3 (HAM paper, section 4.3)."""
    alpha_every: PositiveInt = 1
    """Training steps per step on alpha. The paper uses 1; `n` means n times fewer steps on alpha."""
    penalty: PositiveFloat = 5e-5
    """mu of Eq. 3: strength of the push of the open columns towards the target (HAM paper, section 4.3)."""


class HardAuxiliaryMask(Method):
    """Learns one number alpha per column; a column is open where alpha > 0.

    The search starts with all columns open, alpha = eps. Each step follows the gradient of the validation
    loss. The penalty lowers all alphas while the open columns cost more than the target, and raises them
    while they cost less, so that the cost oscillates around the target.

    Attributes:
        alpha: (S,) float32, on the device of the search space.
    Source: HAM paper, section 3.3, Eq. 2 and 3.
    """

    Settings = HamSettings
    settings: HamSettings

    def __init__(self, space: SearchSpace, settings: HamSettings) -> None:
        super().__init__(space, settings)
        self.alpha = torch.full((space.layout.size,), settings.alpha_init, device=space.device)

    @property
    def every(self) -> int:
        """The setting `alpha_every`."""
        return self.settings.alpha_every

    def warning(self, steps: int) -> str | None:
        """Returns a warning if the search has too few steps to close columns.

        The penalty alone closes the first column after alpha_init / penalty steps.
        """
        needed = self.settings.alpha_init / self.settings.penalty
        if steps >= 3 * needed:
            return None
        return (
            f"warning: the search has {steps:,} steps, but the penalty takes about {needed:,.0f} to close "
            "the first column. The search may end before any column is closed: raise search.epochs or "
            "search.method.penalty, or lower data.batch_size"
        )

    def mask(self) -> torch.Tensor:
        """Returns 1[alpha > 0], (S,) float32."""
        return (self.alpha > 0).float()

    def step(self, loss: MaskLoss) -> None:
        """alpha <- alpha - eta dL/dm - mu sign(|m|_1 - s): Eq. 3, with dL/dm for dL/dalpha (Eq. 2)."""
        mask = self.mask()
        excess = self.space.budget.used(mask) - self.space.budget.limit
        penalty = self.settings.penalty * ((excess > 0) - (excess < 0))
        self.alpha -= self.settings.alpha_learning_rate * loss.gradient_at(mask) + penalty

    def choice(self) -> torch.Tensor:
        """Returns the columns with the highest alpha that fit into the budget.

        These are the open columns, except for the few by which their number is off the target at this step.
        """
        return self.space.budget.best(self.alpha)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns alpha."""
        return {"alpha": self.alpha}
