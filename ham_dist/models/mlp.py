"""The deep part of DeepFM and DCN-V2."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional


class HiddenLinear(nn.Linear):
    """nn.Linear whose bias is added in its own precision.

    Added in bfloat16, the bias would swallow the products of embeddings that are initialized around 0.01.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.with_weight(input, self.weight)

    def with_weight(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Returns the output for another weight, with this bias."""
        if not torch.is_autocast_enabled(input.device.type):
            return functional.linear(input, weight, self.bias)
        return functional.linear(input, weight).to(self.bias.dtype) + self.bias


def hidden_layers(inputs: int, dims: Iterable[int]) -> list[nn.Module]:
    """Returns layers (B, inputs) -> (B, last of dims): linear, BatchNorm, ReLU for each dim; [] without dims.

    Args:
        inputs: Input features of the first layer.
        dims: Output features of each linear layer.
    Source: HAM paper, section 4.5, whose count of dense parameters includes BatchNorm's scale and shift in
        each layer.
    """
    layers: list[nn.Module] = []
    for dim in dims:
        linear = HiddenLinear(inputs, dim)
        # BatchNorm subtracts this bias again, so its true gradient is 0. Adam would turn rounding errors into
        # full steps, and the running mean, which evaluation uses, would lag behind: validation AUC then
        # varies by 0.01 between epochs, and between numbers of ranks.
        linear.bias.requires_grad_(False)
        layers += [linear, nn.BatchNorm1d(dim), nn.ReLU()]
        inputs = dim
    return layers
