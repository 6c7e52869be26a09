"""The training steps that all stages share.

B rows of this rank, S columns under search
"""

import time
from collections.abc import Callable

import torch
from torch.nn import functional

from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.lookups import summed_gradients
from ham_dist.embedding.mask import ClosedColumns, as_evaluated
from ham_dist.training.guard import Guard
from ham_dist.training.progress import StageProgress
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples, StageName
from ham_dist.training.state import TrainingState

LossCheck = Callable[[torch.Tensor, Batch], None]
"""Called with this rank's share of a step's loss, and the batch."""


def log_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Returns this rank's share of the global batch's mean log loss; the mean is the sum of the shares."""
    return (
        functional.binary_cross_entropy_with_logits(logits, batch.labels.to(logits.dtype), reduction="sum")
        / batch.global_rows
    )


def weight_step(state: TrainingState, batch: Batch, check: LossCheck | None = None) -> torch.Tensor:
    """Update tables and dense weights by one step on a training batch, under the current mask.

    Args:
        check: Called with this rank's share of the loss before any weight is updated; may raise.
    Returns:
        This rank's share of the loss, a scalar.
    """
    transform = state.transform
    state.optimizers.zero_grad()
    if transform is not None:
        transform.before_forward()
    with summed_gradients():
        loss = log_loss(state.logits(batch, trains=True), batch)
        if check is not None:
            check(loss.detach(), batch)
        loss.backward()
    if transform is not None:
        transform.after_backward()
    state.regularizer.before_step(state.sharded)
    state.optimizers.step()
    state.regularizer.after_step(state.sharded, state.optimizers)
    if transform is not None:
        transform.after_step()
    return loss.detach()


def mask_gradient(
    state: TrainingState, batch: Batch, mask: torch.Tensor, closed: ClosedColumns | None = None
) -> torch.Tensor:
    """Returns dL/dm on a validation batch, at `mask`; the gradient of alpha in Eq. 2 of the HAM paper.

    Tables, dense weights, their optimizers and BatchNorm's running statistics stay bit for bit the same: only
    the mask's gradient is computed, without DDP and without the fused kernels' update.

    The interaction is in evaluation mode (lookups have no modes), since L_val is the loss of the model that
    validation measures. With the batch's own statistics in BatchNorm the search kept worse columns
    (perf/results/search_mode_cpu_2026-11.md).

    Args:
        mask: (S,) float32.
        closed: Computes the values of closed columns; None: zeros.
    Returns:
        (S,) float32, over the global batch, the same on every rank.
    """
    values = mask.detach().to(state.interaction.dtype, copy=True).requires_grad_()
    with state.sharded.mask.differentiable(values, closed), as_evaluated(state.interaction):
        loss = log_loss(state.logits(batch), batch)
    (gradient,) = torch.autograd.grad(loss, values)
    return process_group.sum_over_ranks(gradient).float()


@torch.no_grad()
def loss_at(
    state: TrainingState, batch: Batch, mask: torch.Tensor, closed: ClosedColumns | None = None
) -> float:
    """Returns the mean log loss of a batch at `mask`, by a forward pass as in `mask_gradient`.

    Args:
        mask: (S,) float32.
        closed: As in `mask_gradient`.
    Returns:
        The loss over the global batch, the same on every rank.
    """
    values = mask.to(state.interaction.dtype)
    with state.sharded.mask.differentiable(values, closed), as_evaluated(state.interaction):
        # In float64 from the logits on: the loss of two masks may differ by less than a float32 sum's error.
        loss = log_loss(state.logits(batch).double(), batch)
    return float(process_group.sum_over_ranks(loss))


def train_epoch(
    stage: StageName,
    state: TrainingState,
    samples: Samples,
    log: RunLog,
    progress: StageProgress,
    guard: Guard,
    step: Callable[[Batch], object],
) -> float:
    """Run `step` on the remaining training batches of the epoch that `progress` is in.

    Args:
        step: One step on a batch; it calls `guard.check` with its loss.
    Returns:
        Mean log loss over the epoch, the same on every rank.
    Raises:
        DivergedError: The loss of a step is not finite.
        Preempted: SIGTERM was received; raised after saving a checkpoint.
    """
    start = time.perf_counter()
    with log.progress(stage, progress.epochs, samples.steps - progress.steps) as steps:
        for batch in state.batches(samples.training(stage, progress.epochs, start=progress.steps)):
            step(batch)
            progress.training_seconds += time.perf_counter() - start
            guard.finish_step(batch.global_rows)
            steps.step(batch.global_rows)
            start = time.perf_counter()
        guard.settle()
    return progress.loss / samples.steps
