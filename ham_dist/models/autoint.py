"""AutoInt: self-attention over the fields of a row.

Shape letters: B rows, F fields, L = lift_dim, H heads of dim L / H.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import model_validator
from torch import nn
from torch.nn import functional

from ham_dist.config.base import LayerCount, PositiveInt
from ham_dist.models.interaction import Axis, Interaction
from ham_dist.models.lift import Lift, LiftedSettings
from ham_dist.models.logit import Logit


class AutoIntSettings(LiftedSettings):
    """Self-attention over the lifted fields."""

    name: Literal["autoint"] = "autoint"
    attention_layers: LayerCount = 3
    """Number of self-attention layers."""
    attention_heads: PositiveInt = 2
    """Heads per layer; must divide `lift_dim`."""

    @model_validator(mode="after")
    def _check_heads(self) -> "AutoIntSettings":
        if self.lift_dim % self.attention_heads:
            raise ValueError(
                f"attention_heads = {self.attention_heads} does not divide lift_dim = {self.lift_dim}"
            )
        return self


class AttentionLayer(nn.Module):
    """ReLU(multi-head attention over the fields + W_res x): (B, F, L) -> (B, F, L).

    The scores are plain inner products: the paper neither divides them by the square root of the head dim nor
    has biases or a normalization. (Its authors' code adds a scale, ReLUs on the projections and a layer
    norm.)

    Args:
        dim: L.
        heads: H.
    Source: Song et al., "AutoInt" (2019), Eq. 5 to 8.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # W_query, W_key, W_value and W_res in one product.
        self.projection = nn.Linear(dim, 4 * dim, bias=False)
        for weight in self.projection.weight.detach().chunk(4):
            nn.init.xavier_uniform_(weight)

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """Applies one layer: (B, F, L) -> (B, F, L)."""
        *parts, residual = self.projection(fields).chunk(4, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts
        )  # each (B, H, F, L / H)
        attended = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return torch.relu(attended.transpose(1, 2).flatten(2) + residual)


class AutoInt(Interaction):
    """Logit = linear(attention layers over the lifted fields, (B, F * L)).

    A field without kept columns remains as a slot of zeros: the softmax of every other field still counts it,
    with score 0, as in the masked supernet.

    Args:
        dims: d_j by field; 0 for a field of which only the slot is left.
        settings: Uses lift_dim, attention_layers and attention_heads.
    Source: Song et al., "AutoInt" (2019), section 4.
    """

    Settings = AutoIntSettings
    is_linear_in_columns = True
    keeps_slots = True

    def __init__(self, dims: Mapping[str, int], settings: AutoIntSettings) -> None:
        super().__init__(dims, settings)
        self.lift = Lift(self.dims, settings.lift_dim)
        self.attention = nn.Sequential(
            *(
                AttentionLayer(settings.lift_dim, settings.attention_heads)
                for _ in range(settings.attention_layers)
            )
        )
        self.last = Logit(len(self.dims) * settings.lift_dim, 1)

    def forward(self, columns: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.last(self.attention(self.lift(columns, mask)).flatten(1)).squeeze(1)

    def axes(self) -> dict[str, dict[int, Axis]]:
        return {"lift.weight": {0: Axis(tuple(self.dims))}}
