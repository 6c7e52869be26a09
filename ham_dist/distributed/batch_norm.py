"""BatchNorm over the global batch. torch's SyncBatchNorm exists on CUDA only; this one runs on every backend.

B rows here, N rows of all ranks, n features
"""

from typing import Any

import torch
from torch import nn

from ham_dist.distributed import process_group
from ham_dist.distributed.rounding import FLOAT32_BITS, rounded

CONSTANT = 1e-13
"""A feature of no greater variance than this is taken for constant: normalized to 0, without a gradient."""


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; its gradient is the sum of the ranks' gradients, since each rank's loss reads every rank's tensor."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return process_group.sum_over_ranks(values.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return rounded(process_group.sum_over_ranks(gradients[0].clone()), FLOAT32_BITS)


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d whose statistics in training are those of the global batch: one all-reduce of 2 n + 1 numbers each way.

    Sums are taken in float64 and rounded, on one rank too, so that the statistics do not depend on how the batch is spread over ranks.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalized `input`, (B, n)."""
        if not self.training:
            return super().forward(input)
        # Squares are summed of what lies around 0: taken off afterwards, a mean far from it would leave a variance of few right digits.
        near = self.running_mean.double() if self.running_mean is not None else 0.0
        values, features = input.double() - near, input.shape[1]
        count = values.new_full((1,), input.shape[0])
        sums: torch.Tensor = _SumOverRanks.apply(torch.cat([values.sum(dim=0), values.square().sum(dim=0), count]))
        rows = sums[-1].detach()
        exact_mean = sums[:features] / rows
        variance = rounded((sums[features:-1] / rows - exact_mean.square()).clamp(min=0.0), FLOAT32_BITS)
        mean = rounded(exact_mean, FLOAT32_BITS)
        self._move_running_statistics(mean.detach() + near, variance.detach(), rows)
        # A search may close every column that a feature reads. What is left of it then is rounding, and so would its gradient be, which Adam would
        # make full steps of.
        normalized = torch.where(variance > CONSTANT, (values - mean) * torch.rsqrt(variance + self.eps), 0.0).to(input.dtype)
        return normalized * self.weight + self.bias if self.affine else normalized

    @torch.no_grad()
    def _move_running_statistics(self, mean: torch.Tensor, variance: torch.Tensor, rows: torch.Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * rows / (rows - 1.0)).to(self.running_var.dtype), momentum)


def synchronize_batch_norm(module: nn.Module) -> None:
    """Give every nn.BatchNorm1d inside `module` the statistics of the global batch, in place."""
    for child in module.modules():
        if type(child) is nn.BatchNorm1d:
            # The subclass adds no state, so that the same parameters, buffers and names stay.
            child.__class__ = GlobalBatchNorm1d
