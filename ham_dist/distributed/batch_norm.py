"""BatchNorm over the global batch. torch's SyncBatchNorm exists on CUDA only; this one runs on every backend.

B rows here, N rows of all ranks, n features
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ham_dist.distributed import process_group
from ham_dist.distributed.rounding import FLOAT32_BITS, rounded

CONSTANT = 1e-13
"""A feature of no greater variance than this is taken for constant: normalized to 0, without a gradient."""


class _Normalized(torch.autograd.Function):
    """A batch with the global batch's mean and variance taken off, and these two: of each feature, (n,) float64.

    near: (n,) float64 or 0, about the mean. Squares are summed of what lies around 0: taken off afterwards, a mean far from it would leave a variance
          of few right digits.

    The gradient is written out: through torch's own operations, each of the float64 copies of the batch on the way would have one of its own.
    """

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, near: torch.Tensor | float, eps: float) -> tuple[torch.Tensor, ...]:
        values, features = input.double() - near, input.shape[1]
        count = values.new_full((1,), input.shape[0])
        sums = process_group.sum_over_ranks(torch.cat([values.sum(dim=0), values.square().sum(dim=0), count]))
        rows = sums[-1]
        exact_mean = sums[:features] / rows
        variance = rounded((sums[features:-1] / rows - exact_mean.square()).clamp(min=0.0), FLOAT32_BITS)
        mean = rounded(exact_mean, FLOAT32_BITS)
        # A search may close every column that a feature reads. What is left of it then is rounding, and so would its gradient be, which Adam would
        # make full steps of.
        scale = torch.where(variance > CONSTANT, torch.rsqrt(variance + eps), 0.0)
        centred = values.sub_(mean)
        ctx.save_for_backward(centred, mean, exact_mean, scale, rows)
        ctx.mark_non_differentiable(mean, variance, rows)
        return torch.mul(centred, scale, out=torch.empty_like(input)), mean, variance, rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        centred, mean, exact_mean, scale, rows = ctx.saved_tensors
        gradient = gradients[0]
        of_mean = -scale * gradient.sum(dim=0, dtype=torch.float64)
        of_variance = -0.5 * scale**3 * (gradient * centred).sum(dim=0)
        # Of the sums of values and of squares; every rank's loss reads those of all ranks.
        of_sums = torch.cat([of_mean - 2.0 * exact_mean * of_variance, of_variance]) / rows
        of_sum, of_squares = rounded(process_group.sum_over_ranks(of_sums), FLOAT32_BITS).chunk(2)
        # values = centred + mean, and a square's gradient is twice the value.
        of_input = torch.addcmul(of_sum + 2.0 * mean * of_squares, centred, 2.0 * of_squares).addcmul_(gradient, scale)
        return of_input.to(gradient.dtype), None, None


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d whose statistics in training are those of the global batch: one all-reduce of 2 n + 1 numbers each way.

    Sums are taken in float64 and rounded, on one rank too, so that the statistics do not depend on how the batch is spread over ranks.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalized `input`, (B, n)."""
        if not self.training:
            return super().forward(input)
        near = self.running_mean.double() if self.running_mean is not None else 0.0
        normalized, mean, variance, rows = _Normalized.apply(input, near, self.eps)
        self._move_running_statistics(mean + near, variance, rows)
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
