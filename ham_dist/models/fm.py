"""Factorization machine over lifted fields.

Shape letters: B rows, F fields, D columns, L = lift_dim.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ham_dist.config.schema import ModelSettings
from ham_dist.models.interaction import Axis, Interaction
from ham_dist.models.lift import Lift, LiftedSettings


class _PairwiseProducts(torch.autograd.Function):
    """`pairwise_products` with its own backward pass.

    Autograd through torch's operations would read the batch six times, and take longer than the lift.
    """

    @staticmethod
    def forward(ctx: Any, lifted: torch.Tensor) -> torch.Tensor:
        total = lifted.sum(0)
        ctx.save_for_backward(lifted, total)
        return 0.5 * (total.square().sum(1) - torch.linalg.vecdot(lifted, lifted).sum(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        lifted, total = ctx.saved_tensors
        # Subtract first: with a single field, or with all others closed, the result is exactly 0. Subtracting
        # the products would leave rounding errors.
        return (total - lifted).mul_(gradients[0][:, None])


def pairwise_products(lifted: torch.Tensor) -> torch.Tensor:
    """Returns the sum of <v_i, v_j> over all pairs i < j of lifted fields: (F, B, L) -> (B,).

    Computed as half of (square of the sum - sum of the squares), linear in F. The gradient at v_i is the sum
    of all other v.

    Source: Rendle, "Factorization machines" (2010), lemma 3.1.
    """
    products: torch.Tensor = _PairwiseProducts.apply(lifted)
    return products


class FMSettings(LiftedSettings):
    """A factorization machine over lifted fields."""

    name: str = "fm"
    first_order: Literal["linear", "table"] = "linear"
    """First-order term: `linear` in the masked embedding, so that a field can be removed, or a `table` of
    dim 1 per field."""


class FM(Interaction):
    """Logit = bias + first-order term + sum of <v_i, v_j> over all pairs of lifted fields.

    The first-order term is linear in the columns (`first_order = "linear"`), or the sum of tables of dim 1
    outside this module (`first_order = "table"`; this module then adds nothing for it).

    Args:
        dims: d_j by field; fields of dim 0 are left out.
        settings: Uses lift_dim and first_order.
    Source: Rendle, "Factorization machines" (2010), Eq. 1; the lift as in the HAM paper, section 4.3.
    """

    Settings: ClassVar[type[ModelSettings]] = FMSettings
    is_linear_in_columns = True

    @classmethod
    def has_first_order_tables(cls, settings: ModelSettings) -> bool:
        assert isinstance(settings, FMSettings)
        return settings.first_order == "table"

    def __init__(self, dims: Mapping[str, int], settings: FMSettings) -> None:
        super().__init__(dims, settings)
        self.lift = Lift(self.dims, settings.lift_dim)
        self.bias = nn.Parameter(torch.zeros(()))
        columns = sum(self.dims.values())
        self.linear = (
            nn.Parameter(torch.empty(columns).uniform_(-(columns**-0.5), columns**-0.5))
            if settings.first_order == "linear"
            else None
        )

    def forward(self, columns: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        lifted = self.lift.by_field(columns, mask)
        # In full precision even if the lift was in bfloat16: the square of the sum and the sum of the squares
        # nearly cancel.
        with torch.autocast(columns.device.type, enabled=False):
            logits = self.bias + pairwise_products(lifted.to(self.dtype))
            if self.linear is None:
                return logits
            return logits + columns @ (self.linear if mask is None else self.linear * mask)

    def axes(self) -> dict[str, dict[int, Axis]]:
        columns = Axis(tuple(self.dims))
        axes = {"lift.weight": {0: columns}}
        return axes if self.linear is None else axes | {"linear": {0: columns}}
