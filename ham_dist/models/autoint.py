"""AutoInt: self-attention over the fields of a row.

B rows, F fields, L = lift_dim, H heads of width L / H
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import model_validator
from torch import nn
from torch.nn import functional

from ham_dist.config.schema import LayerCount, PositiveInt
from ham_dist.models.interaction import Axis, Interaction
from ham_dist.models.lift import Lift, LiftedSettings
from ham_dist.models.logit import Logit


class AutoIntSettings(LiftedSettings):
    """Self-attention over the lifted fields."""

    name: Literal["autoint"] = "autoint"
    attention_layers: LayerCount = 3
    """Self-attention layers."""
    attention_heads: PositiveInt = 2
    """Heads of each layer; divides `lift_dim`."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "AutoIntSettings":
        if self.lift_dim % self.attention_heads:
            raise ValueError(
                f"attention_heads = {self.attention_heads} does not divide lift_dim = {self.lift_dim}"
            )
        return self


class AttentionLayer(nn.Module):
    """Fields (B, F, L) -> (B, F, L): ReLU(multi-head attention over the fields + W_res x).

    source: Song et al., "AutoInt" (2019), Eq. 5 to 8. The scores are plain inner products: the paper does not divide them by the root of the head's
    width, and has neither biases nor a normalization (its authors' program adds a scale, ReLUs on the projections and a layer norm).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(
            width, 4 * width, bias=False
        )  # W_query, W_key, W_value and W_res in one product
        for weight in self.projection.weight.detach().chunk(4):
            nn.init.xavier_uniform_(weight)

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """One layer: (B, F, L) -> (B, F, L)."""
        *parts, residual = self.projection(fields).chunk(4, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts
        )  # each (B, H, F, L / H)
        attended = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return torch.relu(attended.transpose(1, 2).flatten(2) + residual)


class AutoInt(Interaction):
    """Logit = linear(attention layers over the lifted fields, (B, F * L)).

    A field that has lost all its columns stands as a slot of zeros: the softmax of every other field goes on counting it (with score 0), as it
    does in the masked wide model.

    dims:   d_j by field; 0 where only the slot is left.
    settings: reads lift_dim, attention_layers and attention_heads.
    source:   Song et al. (2019), section 4.
    """

    Settings = AutoIntSettings
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
