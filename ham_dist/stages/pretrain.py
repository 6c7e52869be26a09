"""Stage 1: train the supernet, with the orthogonality regularizer (HAM paper, section 3.3 and Eq. 1)."""

from ham_dist.stages.fit import fit
from ham_dist.training.checkpoints import StageCheckpoints
from ham_dist.training.progress import StageProgress
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples
from ham_dist.training.state import TrainingState


def pretrain(
    state: TrainingState, samples: Samples, checkpoints: StageCheckpoints, log: RunLog
) -> StageProgress:
    """Algorithm 1, 'Pretrain': weight steps with the regularizer until validation AUC stops rising.

    Leaves V_init and Theta_init in `state`.
    """
    return fit("pretrain", state, samples, state.settings.pretrain, checkpoints, log, start_counts=False)
