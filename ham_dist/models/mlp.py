"""The deep part that DeepFM and DCN-V2 share."""

from collections.abc import Iterable

from torch import nn


def hidden_layers(inputs: int, widths: Iterable[int]) -> list[nn.Module]:
    """Layers (B, inputs) -> (B, last of widths): for each width a linear map, BatchNorm and ReLU (no layer at all without widths).

    source: HAM paper, section 4.5, whose count of dense parameters needs BatchNorm's scale and shift in each layer.
    """
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
        inputs = width
    return layers
