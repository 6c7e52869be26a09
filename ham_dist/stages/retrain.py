"""Stage 3: train the narrow model further (HAM paper, section 3.3)."""

from ham_dist.stages.fit import fit
from ham_dist.training.checkpoints import StageCheckpoints
from ham_dist.training.progress import StageProgress
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples
from ham_dist.training.state import TrainingState


def retrain(
    state: TrainingState, samples: Samples, checkpoints: StageCheckpoints, log: RunLog
) -> StageProgress:
    """Algorithm 1, 'Retrain': from the searched V and Theta, sliced to the kept columns.

    Trains until validation AUC stops rising.
    """
    return fit("retrain", state, samples, state.settings.retrain, checkpoints, log, start_counts=True)
