"""DeepFM: a factorization machine and an MLP over the same lifted fields.

B rows, F fields, L = lift_dim
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call

from ham_dist.config.schema import LayerWidths
from ham_dist.models.fm import FM, FMSettings
from ham_dist.models.interaction import Axis
from ham_dist.models.logit import Logit
from ham_dist.models.mlp import hidden_layers


class DeepFMSettings(FMSettings):
    """A factorization machine and an MLP over the same lifted fields."""

    name: str = "deepfm"
    mlp: LayerWidths = (16, 16)
    """Widths of the deep part; each layer is linear, BatchNorm, ReLU."""


class DeepFM(FM):
    """Logit = FM + MLP(lifted fields side by side, (B, F * L)).

    The MLP reads no lifted row: the lift is multiplied into its first layer, which then costs B D n products, and less with each column that is cut.

    dims:   d_j by field; fields of width 0 are left out, so the MLP reads L inputs less for each.
    settings: reads lift_dim, first_order and mlp.
    source:   Guo et al., "DeepFM" (2017), Eq. 1 to 4.
    """

    Settings = DeepFMSettings

    def __init__(self, dims: Mapping[str, int], settings: DeepFMSettings) -> None:
        super().__init__(dims, settings)
        inputs = len(self.dims) * settings.lift_dim
        self.lift_dim = settings.lift_dim
        # FM holds the bias of the logit.
        last = Logit(settings.mlp[-1] if settings.mlp else inputs, 1, bias=False)
        self.deep = nn.Sequential(*hidden_layers(inputs, settings.mlp), last)

    def forward(self, columns: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        first, *others = self.deep
        with torch.autocast(columns.device.type, enabled=False):
            weight = self.lift.folded_into(first.get_parameter("weight"), mask)
        hidden = functional_call(first, {"weight": weight}, (columns,))
        for layer in others:
            hidden = layer(hidden)
        return super().forward(columns, mask) + hidden.squeeze(1)

    def axes(self) -> dict[str, dict[int, Axis]]:
        return super().axes() | {"deep.0.weight": {1: Axis(tuple(self.dims), block=self.lift_dim)}}
