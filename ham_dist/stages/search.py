"""Stage 2: find the columns to keep (HAM paper, Algorithm 1 and Eq. 3)."""

from collections.abc import Iterator
from functools import partial
from itertools import islice

import torch

from ham_dist.config.base import ClosedValue
from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.closed_columns import closed_columns
from ham_dist.embedding.mask import Columns
from ham_dist.methods.method import MaskLoss, Method
from ham_dist.stages.slice import fold_mask
from ham_dist.training.checkpoints import StageCheckpoints
from ham_dist.training.evaluation import evaluate
from ham_dist.training.guard import Guard
from ham_dist.training.loop import LossCheck, loss_at, mask_gradient, train_epoch, weight_step
from ham_dist.training.progress import StageProgress
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples
from ham_dist.training.search_trace import SearchTrace
from ham_dist.training.soft_threshold import SoftThresholding
from ham_dist.training.state import TrainingState
from ham_dist.training.stopping import EarlyStopper

LONG_PASS = 10**9
"""Samples that a one-shot method may read in all passes before it logs a warning."""


def search(
    state: TrainingState, method: Method, samples: Samples, checkpoints: StageCheckpoints, log: RunLog
) -> tuple[Columns, StageProgress]:
    """Algorithm 1, 'Search': alternates a step on alpha with a step on the weights.

    Steps on alpha use validation batches (or those that the method needs), steps on the weights use
    training batches. Leaves the searched weights in `state`, with the mask of the returned columns.

    Returns:
        The kept columns by table, and the progress of the stage.
    """
    settings, budget = state.settings.search, method.space.budget
    alpha_steps = -(-samples.steps // method.every)
    progress = StageProgress(EarlyStopper(settings.patience))
    state.transform = method.transform(state.sharded)
    checkpoints.resume(progress)
    log.truncate_after("search", progress.epochs - 1)
    trace = SearchTrace(
        log.folder.search_trace,
        steps=settings.epochs * samples.steps,
        columns=method.space.layout.size,
        done=progress.epochs * samples.steps + progress.steps,
        writes=method.searches and process_group.rank() == 0,
    )
    guard = Guard("search", state.sharded, progress, checkpoints, log)
    if method.reads_data:
        _score(state, method, samples, log)
    while method.searches and progress.epochs < settings.epochs and not progress.stopper.done:
        epoch = progress.epochs
        done = -(-progress.steps // method.every)
        batches = state.batches(
            islice(samples.forever(method.batches, epoch * alpha_steps + done), alpha_steps - done)
        )
        loss = train_epoch(
            "search",
            state,
            samples,
            log,
            progress,
            guard,
            partial(_alternate, state, method, batches, progress, trace, guard.check, epoch * samples.steps),
        )
        # Evaluated with the columns that would be kept if the search ended here. The number of open columns
        # moves above and below the target, and AUCs of models of different sizes cannot be compared.
        state.sharded.mask.set(method.folded_choice().to(state.sharded.device))
        quality = evaluate(state, samples.evaluation("validation"))
        counts = progress.counts
        progress.finish_epoch(quality.defined_auc, counts=counts.reached(budget.limit) or method.near())
        log.metrics(
            "search", epoch, state.optimizers.steps,
            train_loss=loss, validation_auc=quality.auc, validation_logloss=quality.log_loss,
            used=counts.last, used_lowest=counts.lowest, used_highest=counts.highest, target=budget.limit,
            **{name: values.tolist() for name, values in method.logged().items()},
        )  # fmt: skip
        log.say(
            f"search epoch {epoch}: {budget.unit} in use {counts.last:,} "
            f"(this epoch {counts.lowest:,} to {counts.highest:,}, target {budget.limit:,}), "
            f"validation AUC of the best {budget.limit:,} {quality.auc:.5f}"
        )
        checkpoints.save(progress)
    if method.searches:
        checkpoints.restore_best(progress)
    return _close(state, method, samples, progress, log), progress


def _score(state: TrainingState, method: Method, samples: Samples, log: RunLog) -> None:
    """Lets a method that does not search read its split once."""
    name, rows = state.settings.search.method.name, samples.rows(method.batches)
    log.say(
        f"search: {name} reads {rows:,} {method.batches} samples"
        + (f", {method.passes:,} forward passes over each" if method.passes > 1 else "")
    )
    if method.passes * rows > LONG_PASS:
        log.say(
            f"warning: these are {method.passes * rows:.1e} samples in all, which may take hours. "
            "search.method.name = sseds estimates the same effects by one pass"
        )
    method.score(
        loss_of(state, batch, method.closed) for batch in state.batches(samples.once(method.batches))
    )


def _alternate(
    state: TrainingState,
    method: Method,
    batches: Iterator[Batch],
    progress: StageProgress,
    trace: SearchTrace,
    check: LossCheck,
    steps_before: int,
    train_batch: Batch,
) -> torch.Tensor:
    """One step on alpha if one is due, then one step on the weights under the resulting mask."""
    if progress.steps % method.every == 0:
        method.step(loss_of(state, next(batches), method.closed))  # Eq. 3
    used, mask = method.used(), method.mask()
    progress.counts.saw(used)
    state.sharded.mask.set(mask)
    if trace.due(step := steps_before + progress.steps):
        trace.add(step, used=used, target=method.space.budget.limit, mask=mask, logged=method.logged())
    return weight_step(state, train_batch, check)


def loss_of(state: TrainingState, batch: Batch, closed: ClosedValue = "zero") -> MaskLoss:
    """Returns the loss of a batch as a function of the mask, with this value for closed columns."""
    values = closed_columns(closed, state.settings.seed)
    return MaskLoss(
        partial(mask_gradient, state, batch, closed=values),
        partial(loss_at, state, batch, closed=values),
        batch.global_rows,
    )


def _close(
    state: TrainingState, method: Method, samples: Samples, progress: StageProgress, log: RunLog
) -> Columns:
    """Opens only the chosen columns, which meet the target, and logs how the choice was made.

    The factors of a soft mask are multiplied into the tables.
    """
    budget, last, choice = method.space.budget, method.mask(), method.choice()
    if method.searches:
        closed = int(((last > 0) & (choice.to(last.device) == 0)).sum())
        opened = int(((last <= 0) & (choice.to(last.device) > 0)).sum())
        best = progress.stopper.best_epoch
        log.say(
            (
                f"search: in no epoch was the number of {budget.unit} near the target; "
                f"using the last epoch, {progress.epochs - 1}"
                if best is None
                else f"search: best after {best} epochs"
            )
            + f", with {method.used():,} {budget.unit} in use for a target of {budget.limit:,}; "
            f"to meet the target, {closed} more columns are closed and {opened} are opened: "
            f"{budget.used(choice):,} {budget.unit} are kept"
        )
    else:
        log.say(
            f"search: {state.settings.search.method.name} keeps {budget.used(choice):,} {budget.unit} "
            "of the pretrained tables"
        )
    if isinstance(state.transform, SoftThresholding):
        state.transform = state.transform.finish()
    if (factors := method.fold()) is not None:
        fold_mask(state, choice, factors, samples, log)
    state.sharded.mask.set(choice.to(state.sharded.device))
    return method.space.layout.split(choice)
