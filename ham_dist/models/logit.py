"""The last linear layer of a model, in full precision even if the layers below it are not."""

import torch
from torch import nn
from torch.nn import functional


class Logit(nn.Linear):
    """nn.Linear in the precision of its weights, also under autocast: (B, n) -> (B, 1).

    A bfloat16 logit would have a relative error of up to 1/256.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.with_weight(input, self.weight)

    def with_weight(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Returns the output for another weight, with this bias."""
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(input.to(weight.dtype), weight, self.bias)
