"""Before the search: rotation of every table to its principal axes."""

from functools import partial

from ham_dist.stages.slice import logits_of, require_rounded
from ham_dist.training.covariance import covariances
from ham_dist.training.rotation import principal_axes, rotate_state
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples
from ham_dist.training.state import TrainingState


def rotate(state: TrainingState, samples: Samples, log: RunLog) -> None:
    """Rotates each table to the principal axes of its lookups in the training samples.

    Column 1 of a table has the largest variance, and no two columns are correlated. The model is the same
    function as before.

    Raises:
        SlicingError: The logits on a validation batch changed by more than rounding.
    """
    batch = next(samples.evaluation("validation"))
    before = logits_of(state, batch)
    rotate_state(state, principal_axes(covariances(state, partial(samples.once, "training"), "lookups")))
    difference = require_rounded("the rotated model", "the model before", state, batch, before)
    log.say(f"search: tables are rotated to their principal axes; logits changed by at most {difference:.1e}")
