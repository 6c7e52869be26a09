"""Shared parts of the methods whose mask is soft or sampled.

Shape letter: S columns under search.
"""

import zlib
from abc import abstractmethod

import torch

from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import Method, SearchSpace


class SoftMethod(Method):
    """A method whose mask is soft or sampled: at almost every step, almost every column has a factor above 0.

    The number of columns (or bytes) in use is therefore an expected number. It need not be near the budget
    for early stopping: at the end of an epoch the search evaluates the choice, which always meets the budget.
    """

    @abstractmethod
    def expected(self) -> torch.Tensor:
        """Returns the mask without random noise, (S,): numbers from 0 to 1."""

    def used(self) -> int:
        """Returns the sum of the costs of all columns, each times its number in `expected`, rounded."""
        costs = self.space.budget.costs.double()
        return round(float(costs @ self.expected().cpu().double()))

    def near(self) -> bool:
        """Returns True: every epoch's choice meets the budget."""
        return True


class BoundedAlpha(SoftMethod):
    """A method with one number alpha per column, kept within bounds; the columns with the highest alpha stay.

    Many alphas end at a bound and are equal there. Of equal alphas, the one from which clamping cut off more
    comes first: the gradients pushed it farther beyond the upper bound, or less far beyond the lower one.
    Only columns that are equal in this too are taken by number, the lower one first.

    Args:
        space: The columns to choose from.
        settings: The method's own settings.
        start: Initial value of every alpha.
        low: Lower bound.
        high: Upper bound.
    Attributes:
        alpha: (S,) float32, on the device of the search space.
        cut: Sum of what clamping took away from each alpha; negative at the lower bound. (S,) float32.
    """

    def __init__(
        self, space: SearchSpace, settings: MethodSettings, start: float, low: float = 0.0, high: float = 1.0
    ) -> None:
        super().__init__(space, settings)
        self._low, self._high = low, high
        self.alpha = torch.full((space.layout.size,), start, device=space.device).clamp_(low, high)
        self.cut = torch.zeros_like(self.alpha)

    def move(self, change: torch.Tensor) -> None:
        """Adds `change` (S,) to alpha, within the bounds."""
        moved = self.alpha + change
        self.alpha.copy_(moved.clamp(self._low, self._high))
        self.cut += moved - self.alpha

    def choice(self) -> torch.Tensor:
        """Returns the columns with the highest alpha that fit into the budget."""
        by_cut = torch.sort(self.cut, descending=True, stable=True).indices
        order = by_cut[torch.sort(self.alpha[by_cut], descending=True, stable=True).indices]
        order, alpha = order.cpu(), self.alpha.cpu().double()
        # 2^-50 is more than the spacing of float64 numbers up to 1, and far less than that of float32's.
        alpha[order] -= torch.arange(len(order), dtype=torch.float64) * 2.0**-50
        return self.space.budget.best(alpha)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns alpha, and what clamping cut off."""
        return {"alpha": self.alpha, "cut": self.cut}


class SampledAlpha(BoundedAlpha):
    """A method that draws its mask at random from alpha: one draw per step on alpha, one per mask it returns.

    The draws depend only on the seed and on the number of steps taken. So they are equal on all ranks, and a
    resumed search repeats them.

    Attributes:
        steps: Steps on alpha so far; a tensor, so that checkpoints keep it.
    """

    def __init__(
        self, space: SearchSpace, settings: MethodSettings, start: float, low: float = 0.0, high: float = 1.0
    ) -> None:
        super().__init__(space, settings, start, low, high)
        self.steps = torch.zeros((), dtype=torch.int64)

    @abstractmethod
    def sampled(self, uniform: torch.Tensor) -> torch.Tensor:
        """Returns the mask (S,) for numbers (S,) drawn uniformly from [0, 1)."""

    def mask(self) -> torch.Tensor:
        """Returns the mask drawn for the next step on the weights; the same until the next step on alpha."""
        return self.sampled(self._uniform(2 * int(self.steps)))

    def mask_of_step(self) -> torch.Tensor:
        """Returns the mask drawn for the next step on alpha."""
        return self.sampled(self._uniform(2 * int(self.steps) + 1))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns alpha, what clamping cut off, and the number of steps."""
        return {**super().tensors(), "steps": self.steps}

    def _uniform(self, draw: int) -> torch.Tensor:
        return uniform(self.space, self.settings.name, draw, self.space.layout.size)


def uniform(space: SearchSpace, name: str, draw: int, *shape: int) -> torch.Tensor:
    """Returns numbers from [0, 1), the same on every rank and after a resume.

    Args:
        space: Its seed and device are used.
        name: Name of the method.
        draw: Number of the draw.
        shape: Shape of the result.
    """
    # Drawn on the CPU: GPUs draw other numbers from the same seed.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{space.seed}/{name}/{draw}".encode()))
    return torch.rand(shape, generator=generator).to(space.device)
