"""Training with early stopping by validation AUC, which all stages but the search use."""

from collections.abc import Callable

import torch

from ham_dist.config.schema import PretrainSettings, RetrainSettings
from ham_dist.data.reader.batch import Batch
from ham_dist.training.checkpoints import StageCheckpoints
from ham_dist.training.column_dropout import ColumnDropout
from ham_dist.training.distillation import Teacher
from ham_dist.training.evaluation import evaluate
from ham_dist.training.guard import Guard
from ham_dist.training.loop import train_epoch, weight_step
from ham_dist.training.progress import StageProgress
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples, StageName
from ham_dist.training.state import TrainingState
from ham_dist.training.stopping import EarlyStopper


def fit(
    stage: StageName,
    state: TrainingState,
    samples: Samples,
    settings: PretrainSettings | RetrainSettings,
    checkpoints: StageCheckpoints,
    log: RunLog,
    *,
    start_counts: bool,
    dropout: ColumnDropout | None = None,
    teacher: Teacher | None = None,
    before_step: Callable[[int], None] | None = None,
) -> StageProgress:
    """Trains the weights with early stopping; leaves those with the best validation AUC in `state`.

    Args:
        start_counts: If true, the initial weights are evaluated too and can be the best ones, as is sensible
            for a trained model.
        dropout: Column dropout in the first epochs, which come before the `max_epochs` of the settings. Early
            stopping starts at their end, with the weights there as the initial ones.
        teacher: Model whose probabilities take part in the labels of all steps.
        before_step: Called before each step with the number of steps of the stage so far.
    Returns:
        Epochs, steps and seconds of the stage, and its best epoch.
    """
    progress = StageProgress(EarlyStopper(settings.patience))
    checkpoints.resume(progress)
    log.truncate_after(stage, progress.epochs - 1)
    first = 0 if dropout is None else dropout.epochs
    if start_counts and not first and progress.stopper.best_epoch is None:
        progress.stopper.saw(evaluate(state, samples.evaluation("validation")).defined_auc, 0)
        log.say(f"{stage} starts from validation AUC {progress.stopper.best:.5f}")
        checkpoints.save(progress)
    guard = Guard(stage, state.sharded, progress, checkpoints, log)

    def step(batch: Batch) -> torch.Tensor:
        if before_step is not None:
            before_step(progress.epochs * samples.steps + progress.steps)
        if dropout is not None and dropout.is_on(progress.epochs):
            mask = dropout.mask(state.sharded.mask.layout.size, progress.epochs, progress.steps)
            state.sharded.mask.set(mask.to(state.sharded.device))
        return weight_step(state, batch if teacher is None else teacher.softened(batch), guard.check)

    while progress.epochs < first + settings.max_epochs and not progress.stopper.done:
        epoch = progress.epochs
        loss = train_epoch(stage, state, samples, log, progress, guard, step)
        state.sharded.mask.set(None)
        quality = evaluate(state, samples.evaluation("validation"))
        progress.finish_epoch(quality.defined_auc, counts=epoch + 1 >= first)
        of_phase = {"column_dropout": dropout.rate} if dropout is not None and epoch < first else {}
        log.metrics(
            stage, epoch, state.optimizers.steps,
            train_loss=loss, validation_auc=quality.auc, validation_logloss=quality.log_loss,
            orthogonality=state.regularizer.penalty(state.sharded), **of_phase,
        )  # fmt: skip
        log.say(
            f"{stage} epoch {epoch}{''.join(f' (column dropout {rate})' for rate in of_phase.values())}: "
            f"train log loss {loss:.5f}, "
            f"validation AUC {quality.auc:.5f}, log loss {quality.log_loss:.5f}"
        )
        checkpoints.save(progress)
    checkpoints.restore_best(progress)
    best = progress.stopper
    log.say(f"{stage}: best after {best.best_epoch} epochs, validation AUC {best.best:.5f}")
    return progress
