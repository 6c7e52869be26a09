"""Factorization machine over lifted fields.

B rows, F fields, D columns, L = lift_width
"""

from collections.abc import Mapping

import torch
from torch import nn

from ham_dist.config.schema import ModelSettings
from ham_dist.models.interaction import Axis, Interaction
from ham_dist.models.lift import Lift


def pairwise_products(lifted: torch.Tensor) -> torch.Tensor:
    """Sum of <v_i, v_j> over all pairs i < j of lifted fields: (B, F, L) -> (B,).

    source: Rendle, "Factorization machines" (2010), lemma 3.1: half of (square of sum - sum of squares), linear in F.
    """
    return 0.5 * (lifted.sum(1).square() - lifted.square().sum(1)).sum(1)


class FM(Interaction):
    """Logit = bias + first order + sum of <v_i, v_j> over all pairs of lifted fields.

    The first-order term is linear in the columns (`first_order = "linear"`), or comes from tables of width 1 outside of this module
    (`first_order = "table"`: nothing is added here).

    widths:   d_j by field; fields of width 0 are left out.
    settings: reads lift_width and first_order.
    source:   Rendle (2010), Eq. 1; the lift as in the HAM paper, section 4.3.
    """

    adds_first_order = True

    def __init__(self, widths: Mapping[str, int], settings: ModelSettings) -> None:
        super().__init__(widths)
        self.lift = Lift(self.widths, settings.lift_width)
        self.bias = nn.Parameter(torch.zeros(()))
        columns = sum(self.widths.values())
        self.linear = nn.Parameter(torch.empty(columns).uniform_(-(columns**-0.5), columns**-0.5)) if settings.first_order == "linear" else None

    def forward(self, columns: torch.Tensor) -> torch.Tensor:
        return self.logits(columns, self.lift(columns))

    def logits(self, columns: torch.Tensor, lifted: torch.Tensor) -> torch.Tensor:
        """Logits (B,) of columns (B, D) and of the same lifted, (B, F, L)."""
        logits = self.bias + pairwise_products(lifted)
        return logits if self.linear is None else logits + columns @ self.linear

    def axes(self) -> dict[str, dict[int, Axis]]:
        columns = Axis(tuple(self.widths))
        axes = {"lift.weight": {0: columns}}
        return axes if self.linear is None else axes | {"linear": {0: columns}}
