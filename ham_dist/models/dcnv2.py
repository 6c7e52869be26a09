"""DCN-V2, parallel structure: full-rank cross layers next to an MLP.

Shape letters: B rows, D columns.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from ham_dist.config.base import LayerCount, LayerWidths
from ham_dist.config.schema import ModelSettings
from ham_dist.models.interaction import Axis, Interaction
from ham_dist.models.logit import Logit
from ham_dist.models.mlp import hidden_layers


class DCNV2Settings(ModelSettings):
    """Cross layers and an MLP over the columns, in parallel."""

    name: Literal["dcnv2"] = "dcnv2"
    mlp: LayerWidths = (16, 16)
    """Output sizes of the deep part's layers; each layer is linear, BatchNorm, ReLU."""
    cross_layers: LayerCount = 3
    """Number of full-rank cross layers."""


class CrossNet(nn.Module):
    """Cross layers x_{l+1} = x_0 * (W_l x_l + b_l) + x_l: (B, D) -> (B, D).

    A zero column of x_0 stays zero in every layer, so slicing it away (its row, column and bias entry in each
    W_l, b_l) changes no other column.

    Args:
        columns: D.
        layers: Number of cross layers.
    Source: Wang et al., "DCN V2" (2021), Eq. 1. Initialization (Xavier normal, zero biases) as in
        torchrec.modules.crossnet.CrossNet.
    """

    def __init__(self, columns: int, layers: int) -> None:
        super().__init__()
        linears = [nn.Linear(columns, columns) for _ in range(layers)]
        for linear in linears:
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.layers = nn.ModuleList(linears)

    def forward(self, start: torch.Tensor) -> torch.Tensor:
        """Applies all cross layers to the columns x_0: (B, D) -> (B, D)."""
        crossed = start
        for layer in self.layers:
            crossed = torch.addcmul(crossed, start, layer(crossed))
        return crossed


class DCNV2(Interaction):
    """Logit = linear([cross layers (B, D), MLP (B, last of mlp)]), reading the columns without a lift.

    Args:
        dims: d_j by field; fields of dim 0 are left out.
        settings: Uses cross_layers and mlp; without an mlp, the last linear reads the cross layers only.
    Source: Wang et al., "DCN V2" (2021), section 3.3, parallel structure; HAM paper, section 4.5: 3 D^2 + 20
        D + 369 weights for 3 cross layers and mlp (16, 16).
    """

    Settings = DCNV2Settings

    def __init__(self, dims: Mapping[str, int], settings: DCNV2Settings) -> None:
        super().__init__(dims, settings)
        columns = sum(self.dims.values())
        self.deep_width = settings.mlp[-1] if settings.mlp else 0
        self.cross = CrossNet(columns, settings.cross_layers)
        self.deep = nn.Sequential(*hidden_layers(columns, settings.mlp))
        self.last = Logit(columns + self.deep_width, 1)

    def forward(self, columns: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if mask is not None:
            # The mask cannot be multiplied into weights here: the cross layers also multiply columns by each
            # other.
            columns = columns * mask
        parts = [self.cross(columns)]
        if self.deep_width:
            parts.append(self.deep(columns))
        return self.last(torch.cat(parts, dim=1)).squeeze(1)

    def axes(self) -> dict[str, dict[int, Axis]]:
        columns = Axis(tuple(self.dims))
        axes: dict[str, dict[int, Axis]] = {"last.weight": {1: Axis(columns.fields, tail=self.deep_width)}}
        for layer in range(len(self.cross.layers)):
            axes |= {
                f"cross.layers.{layer}.weight": {0: columns, 1: columns},
                f"cross.layers.{layer}.bias": {0: columns},
            }
        return axes | {"deep.0.weight": {1: columns}} if self.deep_width else axes
