"""The last linear map of a model, in full precision where the layers below it are not."""

import torch
from torch import nn


class Logit(nn.Linear):
    """nn.Linear in the precision of its weights, under autocast too: a logit of bfloat16 would be off by up to a 256th of itself.

    input:   (B, n).
    returns: (B, 1).
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))
