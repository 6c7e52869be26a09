"""SAM: a soft mask of numbers from 0 to 1 (DNIS: Cheng et al., Differentiable Neural Input Search, 2020)."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from ham_dist.config.base import PositiveFloat
from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import MaskLoss, SearchSpace
from ham_dist.methods.soft import BoundedAlpha


class SamSettings(MethodSettings):
    """SAM: a soft mask of numbers from 0 to 1 (DNIS)."""

    name: Literal["sam"] = "sam"
    alpha_init: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Initial value of every alpha (DNIS authors' code)."""
    alpha_learning_rate: PositiveFloat = 1e-2
    """Learning rate of SGD on alpha (HAM paper, section 4.3; the same in the DNIS authors' code)."""
    normalized: bool = False
    """If true, the gradient of each table's columns is divided by its mean absolute value, as in the DNIS
    authors' code, so that alpha moves by about the learning rate at every step."""
    l1: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the sum of all alphas, added to the loss before `normalized` (DNIS authors' code: 1e-5)."""


class SoftAuxiliaryMask(BoundedAlpha):
    """The mask is alpha itself, from 0 to 1, learned by SGD on validation batches; the highest alphas stay.

    The kept columns of the tables are multiplied by their alpha when they are sliced, so that retraining
    starts from the function that was searched.

    The DNIS authors' code differs: one alpha per group of rows of similar frequency and dimension, shared by
    all fields, in place of one per column; the search trains the tables only; alpha's gradient is computed in
    training mode; in the end single entries are pruned, by the size of alpha times weight.
    Source: HAM paper, section 4.2 (i), which equates SAM with DNIS (arXiv 2006.04466; code:
    SJTU-DMTai/AutoSrh, main_nas.py and model/nas.py).
    """

    Settings = SamSettings
    settings: SamSettings

    def __init__(self, space: SearchSpace, settings: SamSettings) -> None:
        super().__init__(space, settings, settings.alpha_init)

    def expected(self) -> torch.Tensor:
        """Returns alpha."""
        return self.alpha

    def mask(self) -> torch.Tensor:
        """Returns alpha, (S,) float32."""
        return self.alpha.clone()

    def step(self, loss: MaskLoss) -> None:
        """alpha <- clamp(alpha - lr (dL/dm + l1), 0, 1), with dL/dm + l1 normalized per table if so set."""
        gradient = loss.gradient_at(self.mask()) + self.settings.l1 * torch.sign(self.alpha)
        if self.settings.normalized:
            for part in self.space.layout.slices.values():
                # The addend is that of the authors' code.
                gradient[part] /= gradient[part].abs().mean() + 1e-8
        self.move(-self.settings.alpha_learning_rate * gradient)

    def fold(self) -> torch.Tensor:
        """Returns alpha."""
        return self.alpha.clone()
