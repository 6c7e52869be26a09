"""The deep part that DeepFM and DCN-V2 share."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional


class _Linear(nn.Linear):
    """nn.Linear whose bias is added in its own precision: beside it, the products of tables that start at 0.01 would be lost in bfloat16."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        return functional.linear(input, self.weight).to(self.bias.dtype) + self.bias


def hidden_layers(inputs: int, dims: Iterable[int]) -> list[nn.Module]:
    """Layers (B, inputs) -> (B, last of dims): for each width a linear map, BatchNorm and ReLU (no layer at all without dims).

    source: HAM paper, section 4.5, whose count of dense parameters needs BatchNorm's scale and shift in each layer.
    """
    layers: list[nn.Module] = []
    for width in dims:
        linear = _Linear(inputs, width)
        # BatchNorm takes this bias away again, so its true gradient is 0. Adam would make full steps of the rounding that is left, and the running
        # mean, which evaluation uses, would limp behind: validation AUC then jumps by 0.01 from one epoch, or one number of ranks, to the next.
        linear.bias.requires_grad_(False)
        layers += [linear, nn.BatchNorm1d(width), nn.ReLU()]
        inputs = width
    return layers
