"""The deep part that DeepFM and DCN-V2 share."""

from collections.abc import Iterable

from torch import nn


def hidden_layers(inputs: int, widths: Iterable[int]) -> list[nn.Module]:
    """Layers (B, inputs) -> (B, last of widths): for each width a linear map, BatchNorm and ReLU (no layer at all without widths).

    source: HAM paper, section 4.5, whose count of dense parameters needs BatchNorm's scale and shift in each layer.
    """
    layers: list[nn.Module] = []
    for width in widths:
        linear = nn.Linear(inputs, width)
        # BatchNorm takes this bias away again, so its true gradient is 0. Adam would make full steps of the rounding that is left, and the running
        # mean, which evaluation uses, would limp behind: validation AUC then jumps by 0.01 from one epoch, or one number of ranks, to the next.
        linear.bias.requires_grad_(False)
        layers += [linear, nn.BatchNorm1d(width), nn.ReLU()]
        inputs = width
    return layers
