"""Slicing, between search and retraining, with a check that the logits do not change."""

import torch

from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks.gather import gather_rows
from ham_dist.embedding.mask import Columns, as_evaluated
from ham_dist.errors import SlicingError
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples
from ham_dist.training.slicing import slice_state
from ham_dist.training.state import TrainingState
from ham_dist.training.transform import ZeroPattern

LARGEST_DIFFERENCE = 1e-5
"""Largest allowed difference of two logits that are the same sums of float32 numbers in a different order. It
is relative to the largest logit if that is above 1."""


def slice_columns(state: TrainingState, columns: Columns, samples: Samples, log: RunLog) -> TrainingState:
    """Returns the sliced model with `columns`, sliced from `state`, whose mask has the same columns.

    Raises:
        SlicingError: Their logits on a validation batch differ by more than 1e-5.
    """
    pattern = state.transform if isinstance(state.transform, ZeroPattern) else None
    if pattern is not None:  # the weights may be others than those that the pattern was found with
        pattern.apply()
    sliced = slice_state(state, columns)
    if pattern is not None:
        sliced.transform = pattern.moved_to(sliced.sharded)
    batch = next(samples.evaluation("validation"))
    masked, after = _logits(state, batch), _logits(sliced, batch)
    difference = float((masked - after).abs().max()) / max(1.0, float(masked.abs().max()))
    kept = sum(map(len, columns.values()))
    log.say(
        f"slice: {kept} columns are kept; the sliced model's logits differ from the masked model's "
        f"by at most {difference:.1e}"
    )
    if not difference <= LARGEST_DIFFERENCE:
        raise SlicingError(
            f"slice: the sliced model's logits differ from the masked model's by {difference:.1e}, "
            f"expected at most {LARGEST_DIFFERENCE}. "
            "This is a bug of ham_dist: please report it with the run folder"
        )
    return sliced


@torch.no_grad()
def _logits(state: TrainingState, batch: Batch) -> torch.Tensor:
    with as_evaluated(state.sharded.model):
        return gather_rows(state.logits(batch))
