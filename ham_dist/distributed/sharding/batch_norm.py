"""BatchNorm over the global batch, on every backend; torch's SyncBatchNorm needs CUDA.

Shape letters: B rows of the batch on this rank, N rows on all ranks, n features.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.rounding import FLOAT32_BITS, rounded

CONSTANT = 1e-13
"""Features with at most this variance, or at most this share of their squared mean, count as constant.

They are normalized to 0, without a gradient. Below this share, float64 leaves no correct digits of
a variance."""


class _Normalized(torch.autograd.Function):
    """Normalizes a batch (B, n) by the global batch's mean and variance, then scales and shifts it.

    Returns the normalized batch, and the mean minus `near`, the variance and N. Mean and variance are (n,)
    float64.

    Squares are summed after subtracting `near`: with the squares of a feature whose mean is far from 0, few
    digits of the variance would be correct.

    The backward pass is written out: through torch's own operations, every intermediate copy of the batch
    would have a gradient of its own.

    Args:
        input: (B, n).
        near: Estimate of the mean, (n,) float64.
        weight: Scale, (n,).
        bias: Shift, (n,).
        eps: Added to the variance.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        near: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, ...]:
        values, features = input - near.to(input.dtype), input.shape[1]
        count = near.new_full((1,), input.shape[0])
        squares = values.square().sum(dim=0, dtype=torch.float64)
        sums = process_group.sum_over_ranks(
            torch.cat([values.sum(dim=0, dtype=torch.float64), squares, count])
        )
        rows = sums[-1]
        exact_mean = sums[:features] / rows
        variance = rounded((sums[features:-1] / rows - exact_mean.square()).clamp(min=0.0), FLOAT32_BITS)
        mean = rounded(exact_mean, FLOAT32_BITS)
        # A search may close every column that a feature reads. The feature is then rounding errors, as its
        # gradient would be, and Adam would turn that into full steps.
        scale = torch.where(
            variance > CONSTANT * exact_mean.square().clamp(min=1.0), torch.rsqrt(variance + eps), 0.0
        )
        # In the batch's data type, which holds the rounded mean exactly: a float64 mean would convert the
        # whole batch to float64 and back.
        centred = values.sub_(mean.to(values.dtype))
        ctx.save_for_backward(centred, scale, rows, weight)
        ctx.mark_non_differentiable(mean, variance, rows)
        return torch.addcmul(bias, centred, (scale * weight).to(input.dtype)), mean, variance, rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        centred, scale, rows, weight = ctx.saved_tensors
        gradient = gradients[0]
        of_bias = gradient.sum(dim=0, dtype=torch.float64)
        of_scaled = (gradient * centred).sum(dim=0, dtype=torch.float64)
        # The loss of every rank depends on the statistics of all ranks.
        of_statistics = process_group.sum_over_ranks(
            torch.cat([-scale * weight * of_bias, -0.5 * scale**3 * weight * of_scaled]) / rows
        )
        of_mean, of_variance = rounded(of_statistics, FLOAT32_BITS).chunk(2)
        constant, along, through = (
            part.to(gradient.dtype) for part in (of_mean, 2.0 * of_variance, scale * weight)
        )
        of_input = torch.addcmul(constant, centred, along).addcmul_(gradient, through)
        return of_input, None, (of_scaled * scale).to(weight.dtype), of_bias.to(weight.dtype), None


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d with the statistics of the global batch in training.

    It sums 2 n + 1 numbers over the ranks in the forward pass, and 2 n in the backward pass. All sums are in
    float64 and rounded, also on one rank, so that the statistics do not depend on how the batch is split over
    the ranks.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns the normalized `input`, (B, n), at least in float32; under autocast `input` is bfloat16."""
        if input.dtype.itemsize < torch.float32.itemsize:
            input = input.float()
        if not self.training:
            return super().forward(input)
        near = (
            input.new_zeros(self.num_features, dtype=torch.float64)
            if self.running_mean is None
            else self.running_mean.double()
        )
        weight = self.weight if self.affine else torch.ones_like(near)
        bias = self.bias if self.affine else input.new_zeros(self.num_features)
        normalized, mean, variance, rows = _Normalized.apply(input, near, weight, bias, self.eps)
        self._move_running_statistics(mean + near, variance, rows)
        return normalized

    @torch.no_grad()
    def _move_running_statistics(
        self, mean: torch.Tensor, variance: torch.Tensor, rows: torch.Tensor
    ) -> None:
        if (
            not self.track_running_stats
            or self.running_mean is None
            or self.running_var is None
            or self.num_batches_tracked is None
        ):
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(
            (variance * rows / (rows - 1.0).clamp(min=1.0)).to(self.running_var.dtype), momentum
        )


def synchronize_batch_norm(module: nn.Module) -> None:
    """Makes every nn.BatchNorm1d in `module` use the statistics of the global batch, in place."""
    for child in module.modules():
        if type(child) is nn.BatchNorm1d:
            # The subclass has no state of its own, so parameters, buffers and names are unchanged.
            child.__class__ = GlobalBatchNorm1d
