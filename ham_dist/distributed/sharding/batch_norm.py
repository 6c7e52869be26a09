"""BatchNorm over the global batch. torch's SyncBatchNorm exists on CUDA only; this one runs on every backend.

B rows here, N rows of all ranks, n features
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.rounding import FLOAT32_BITS, rounded

CONSTANT = 1e-13
"""A feature of no greater variance than this (or than this share of its squared mean: float64 leaves no more of a variance) is taken for constant:
normalized to 0, without a gradient."""


class _Normalized(torch.autograd.Function):
    """A batch (B, n) normalized by the global batch's mean and variance, scaled and shifted; and these two, of each feature, (n,) float64.

    near:   (n,) float64, about the mean. Squares are summed of what lies around 0: taken off afterwards, a mean far from it would leave a variance
            of few right digits. What comes back for the mean is the distance from it.
    weight, bias: (n,).

    The gradient is written out: through torch's own operations, each copy of the batch on the way would have one of its own.
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
        # A search may close every column that a feature reads. What is left of it then is rounding, and so would its gradient be, which Adam would
        # make full steps of.
        scale = torch.where(
            variance > CONSTANT * exact_mean.square().clamp(min=1.0), torch.rsqrt(variance + eps), 0.0
        )
        # In the batch's own type: it holds the rounded mean exactly, and with a mean in float64 the whole batch would go to float64 and back.
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
        # Every rank's loss reads the statistics of all.
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
    """nn.BatchNorm1d whose statistics in training are those of the global batch: one sum over ranks of 2 n + 1 numbers each way.

    Sums are taken in float64 and rounded, on one rank too, so that the statistics do not depend on how the batch is spread over ranks.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalized `input`, (B, n), in the precision of the weights where that is greater: under autocast a linear map gives bfloat16."""
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
    """Give every nn.BatchNorm1d inside `module` the statistics of the global batch, in place."""
    for child in module.modules():
        if type(child) is nn.BatchNorm1d:
            # The subclass adds no state, so that the same parameters, buffers and names stay.
            child.__class__ = GlobalBatchNorm1d
