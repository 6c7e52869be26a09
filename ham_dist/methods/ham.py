"""HAM: a hard 0/1 mask over columns, learned through a straight-through gradient (HAM paper, section 3.3)."""

import torch

from ham_dist.config.schema import SearchSettings
from ham_dist.methods.method import MaskGradient, Method, SearchSpace


class HardAuxiliaryMask(Method):
    """alpha, one number a column: a column is open where alpha > 0.

    The search starts with every column open, alpha = eps. Each step follows the gradient of the validation loss, and pushes all alphas down
    while more columns are open than the target and up while fewer are, so that the count swings around the target.
    """

    def __init__(self, space: SearchSpace, settings: SearchSettings) -> None:
        super().__init__(space, settings)
        self.alpha = torch.full((space.layout.size,), settings.alpha_start, device=space.device)

    def mask(self) -> torch.Tensor:
        """1[alpha > 0]."""
        return (self.alpha > 0).float()

    def step(self, gradient_at: MaskGradient) -> None:
        """alpha <- alpha - eta dL/dm - mu sign(|m|_1 - s): Eq. 3, with dL/dalpha taken to be dL/dm (Eq. 2)."""
        mask = self.mask()
        excess = self.space.budget.used(mask) - self.space.budget.limit
        push = self.settings.push * ((excess > 0) - (excess < 0))
        self.alpha -= self.settings.alpha_learning_rate * gradient_at(mask) + push

    def choice(self) -> torch.Tensor:
        """The columns with the highest alpha: the open ones, and at the swing's edge as many fewer or more as the target wants."""
        return self.space.budget.best(self.alpha)

    def tensors(self) -> dict[str, torch.Tensor]:
        """alpha."""
        return {"alpha": self.alpha}
