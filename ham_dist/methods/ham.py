"""HAM: a hard 0/1 mask over columns, learned through a straight-through gradient (HAM paper, section 3.3)."""

from typing import Annotated, Literal

import torch
from pydantic import Field

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
    """mu of Eq. 3: strength of the push of the open columns towards the target (HAM paper, section 4.3). Only
    with `mask = "sign"`."""
    mask: Literal["sign", "top"] = "sign"
    """`sign`: a column is open where alpha > 0, and the push holds their number near the target, as in the
    paper. `top`: the columns with the highest alpha that fit into the target are open at every step, without
    a push."""
    average_steps: Annotated[int, Field(ge=0)] = 0
    """Choose by an exponential moving average of alpha over about this many steps on alpha, such as those of
    an epoch: the weight of an alpha falls by the factor 1 - 1 / average_steps in each step. 0: by alpha
    itself."""
    cost_aware: bool = False
    """For targets in bytes, whose columns cost more or less by the number of rows: rank columns by what alpha
    has gained per byte, and push each column in proportion to its bytes. Without effect on targets in
    columns."""


class HardAuxiliaryMask(Method):
    """Learns one number alpha per column; a column is open where alpha > 0.

    The search starts with all columns open, alpha = eps. Each step follows the gradient of the validation
    loss. The penalty lowers all alphas while the open columns cost more than the target, and raises them
    while they cost less, so that the cost oscillates around the target.

    Settings that differ from the paper: `mask = "top"` opens the columns with the highest alpha, exactly as
    many as the target, in place of the push. The push is the same for every column, so it never changes their
    order, and only moves the threshold. Before the first step all columns are open, as all alphas are equal.

    `cost_aware` weighs columns by their cost c_j. The push on column j is mu c_j / mean(c), the gradient of a
    price on the total cost in place of one on the number of columns, and columns are ranked by
    (alpha_j - eps) / c_j. The push lowers this by the same number for all columns: it is the score per cost
    up to a constant.

    Attributes:
        alpha: (S,) float32, on the device of the search space.
        average: (S,) float32, the moving average of alpha; alpha itself without `average_steps`.
    Source: HAM paper, section 3.3, Eq. 2 and 3.
    """

    Settings = HamSettings
    settings: HamSettings

    def __init__(self, space: SearchSpace, settings: HamSettings) -> None:
        super().__init__(space, settings)
        self.alpha = torch.full((space.layout.size,), settings.alpha_init, device=space.device)
        self.average = self.alpha.clone() if settings.average_steps else self.alpha
        costs = space.budget.costs.double()
        self._prices = (costs / costs.mean()).float().to(space.device) if settings.cost_aware else 1.0

    @property
    def every(self) -> int:
        """The setting `alpha_every`."""
        return self.settings.alpha_every

    def warning(self, steps: int) -> str | None:
        """Returns a warning if the search has too few steps to close columns.

        The penalty alone closes the first column after alpha_init / penalty steps.
        """
        needed = self.settings.alpha_init / self.settings.penalty
        if self.settings.mask == "top" or steps >= 3 * needed:
            return None
        return (
            f"warning: the search has {steps:,} steps, but the penalty takes about {needed:,.0f} to close "
            "the first column. The search may end before any column is closed: raise search.epochs or "
            "search.method.penalty, or lower data.batch_size"
        )

    def mask(self) -> torch.Tensor:
        """Returns 1[alpha > 0], (S,) float32; with `mask = "top"`, the best columns within the budget."""
        if self.settings.mask == "sign" or bool((self.alpha == self.settings.alpha_init).all()):
            return (self.alpha > 0).float()
        return self.space.budget.greedy(self._scores(self.alpha), per_cost=self.settings.cost_aware).to(
            self.alpha.device
        )

    def near(self) -> bool:
        """Returns True with `mask = "top"`, whose mask always fits; else if it costs about the budget."""
        return self.settings.mask == "top" or super().near()

    def step(self, loss: MaskLoss) -> None:
        """alpha <- alpha - eta dL/dm - mu sign(|m|_1 - s): Eq. 3, with dL/dm for dL/dalpha (Eq. 2)."""
        mask = self.mask()
        excess = self.space.budget.used(mask) - self.space.budget.limit
        penalty = self.settings.penalty * ((excess > 0) - (excess < 0)) if self.settings.mask == "sign" else 0
        self.alpha -= self.settings.alpha_learning_rate * loss.gradient_at(mask) + penalty * self._prices
        if self.settings.average_steps:
            self.average.lerp_(self.alpha, 1.0 / self.settings.average_steps)

    def choice(self) -> torch.Tensor:
        """Returns the columns with the highest alpha that fit into the budget.

        These are the open columns, except for the few by which their number is off the target at this step.
        """
        return self.space.budget.best(self._scores(self.average), per_cost=self.settings.cost_aware)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns alpha, and its average if there is one."""
        return {"alpha": self.alpha} | ({"average": self.average} if self.settings.average_steps else {})

    def _scores(self, alpha: torch.Tensor) -> torch.Tensor:
        """Alpha; with costs, what it has gained since its start, as a start divided by a cost is no gain."""
        return alpha.double() - self.settings.alpha_init if self.settings.cost_aware else alpha
