"""DeepFM: a factorization machine and an MLP over the same lifted fields.

Shape letters: B rows, F fields, D columns, L = lift_dim, n outputs of the MLP's first layer.
"""

from collections.abc import Mapping

import torch
from torch import nn

from ham_dist.config.base import LayerWidths
from ham_dist.models.fm import FM, FMSettings
from ham_dist.models.interaction import Axis
from ham_dist.models.logit import Logit
from ham_dist.models.mlp import HiddenLinear, hidden_layers


class DeepFMSettings(FMSettings):
    """A factorization machine and an MLP over the same lifted fields."""

    name: str = "deepfm"
    mlp: LayerWidths = (16, 16)
    """Output sizes of the deep part's layers; each layer is linear, BatchNorm, ReLU."""


class DeepFM(FM):
    """Logit = FM + MLP(concatenated lifted fields, (B, F * L)).

    The lift is multiplied into the MLP's first layer, which then reads the columns and takes B D n products:
    fewer for every column that is sliced away.

    Args:
        dims: d_j by field; fields of dim 0 are left out, and with each the MLP has L fewer inputs.
        settings: Uses lift_dim, first_order and mlp.
    Source: Guo et al., "DeepFM" (2017), Eq. 1 to 4.
    """

    Settings = DeepFMSettings

    def __init__(self, dims: Mapping[str, int], settings: DeepFMSettings) -> None:
        super().__init__(dims, settings)
        inputs = len(self.dims) * settings.lift_dim
        self.lift_dim = settings.lift_dim
        # The bias of the logit is in FM.
        last = Logit(settings.mlp[-1] if settings.mlp else inputs, 1, bias=False)
        self.deep = nn.Sequential(*hidden_layers(inputs, settings.mlp), last)

    def forward(self, columns: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        first, *others = self.deep
        assert isinstance(first, HiddenLinear | Logit), "the layers of __init__"
        with torch.autocast(columns.device.type, enabled=False):
            weight = self.lift.folded_into(first.weight, mask)
        # torch.func.functional_call would set the weight for a moment, which other threads would see.
        hidden = first.with_weight(columns, weight)
        for layer in others:
            hidden = layer(hidden)
        return super().forward(columns, mask) + hidden.squeeze(1)

    def axes(self) -> dict[str, dict[int, Axis]]:
        return super().axes() | {"deep.0.weight": {1: Axis(tuple(self.dims), block=self.lift_dim)}}
