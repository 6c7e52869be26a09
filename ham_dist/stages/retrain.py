"""Stage 3: train the sliced model further (HAM paper, section 3.3)."""

from ham_dist.stages.fit import fit
from ham_dist.training.checkpoints import StageCheckpoints
from ham_dist.training.column_dropout import ColumnDropout
from ham_dist.training.distillation import Teacher
from ham_dist.training.progress import StageProgress
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples
from ham_dist.training.state import TrainingState


def retrain(
    state: TrainingState,
    samples: Samples,
    checkpoints: StageCheckpoints,
    log: RunLog,
    teacher: Teacher | None = None,
) -> StageProgress:
    """Algorithm 1, 'Retrain': from the searched V and Theta, sliced to the kept columns.

    Trains until validation AUC stops rising; before that, for the epochs of `retrain.column_dropout_epochs`
    with column dropout.

    Args:
        teacher: With `retrain.distillation`, the pretrained supernet.
    """
    settings = state.settings.retrain
    dropout = ColumnDropout(
        settings.column_dropout, settings.column_dropout_epochs, "retrain", state.settings.seed
    )
    return fit(
        "retrain",
        state,
        samples,
        settings,
        checkpoints,
        log,
        start_counts=True,
        dropout=dropout,
        teacher=teacher,
    )
