"""Slicing, between search and retraining, with a check that the logits do not change."""

import torch

from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks.gather import gather_rows
from ham_dist.embedding.mask import Columns, as_evaluated
from ham_dist.errors import SlicingError
from ham_dist.training.run_log import RunLog
from ham_dist.training.samples import Samples
from ham_dist.training.slicing import initial_sliced, slice_state
from ham_dist.training.state import TrainingState
from ham_dist.training.transform import ZeroPattern

LARGEST_DIFFERENCE = 1e-5
"""Largest allowed difference of two logits that are the same sums of float32 numbers in a different order. It
is relative to the largest logit if that is above 1."""


def fold_mask(
    state: TrainingState, choice: torch.Tensor, factors: torch.Tensor, samples: Samples, log: RunLog
) -> None:
    """Multiplies the factors of a soft mask into the tables; leaves the mask at 0 and 1.

    Args:
        choice: Kept columns, as a mask (S,) of 0 and 1.
        factors: (S,).
    Raises:
        SlicingError: The logits on a validation batch changed by more than rounding.
    """
    choice, factors = choice.to(state.sharded.device), factors.to(state.sharded.device)
    batch = next(samples.evaluation("validation"))
    state.sharded.mask.set(choice * factors)
    soft = logits_of(state, batch)
    state.sharded.scale_columns(factors)
    state.sharded.mask.set(choice)
    difference = require_rounded(
        "the model with the mask folded into its tables", "the softly masked model", state, batch, soft
    )
    log.say(f"search: the mask is folded into the tables; logits changed by at most {difference:.1e}")


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
    masked, after = logits_of(state, batch), logits_of(sliced, batch)
    difference = require_equal("the sliced model", "the masked model", after, masked, LARGEST_DIFFERENCE)
    kept = sum(map(len, columns.values()))
    log.say(
        f"slice: {kept} columns are kept; the sliced model's logits differ from the masked model's "
        f"by at most {difference:.1e}"
    )
    return sliced


def require_equal(
    model: str, other: str, logits: torch.Tensor, expected: torch.Tensor, largest: float
) -> float:
    """Returns the largest difference of the logits of two models, relative to the largest logit above 1.

    Args:
        model: The model with `logits`, for the message.
        other: The model with the `expected` ones.
        largest: Largest difference allowed.
    Raises:
        SlicingError: The difference is larger.
    """
    difference = float((expected - logits).abs().max()) / max(1.0, float(expected.abs().max()))
    if not difference <= largest:
        raise SlicingError(
            f"slice: the logits of {model} differ from those of {other} by {difference:.1e}, "
            f"expected at most {largest:.1e}. "
            "This is a bug of ham_dist: please report it with the run folder"
        )
    return difference


def require_rounded(
    model: str, other: str, state: TrainingState, batch: Batch, expected: torch.Tensor
) -> float:
    """Returns what `require_equal` does, for a model whose tables were changed: each number is rounded once.

    Args:
        model: The model of `state`, for the message.
        other: The model before the change.
        state: The model after the change.
        batch: A global batch.
        expected: Logits of the batch before the change.
    Raises:
        SlicingError: The difference is larger than rounding to the precision of the tables explains.
    """
    rounding = 4 * torch.finfo(getattr(torch, state.settings.precision.tables)).eps
    return require_equal(model, other, logits_of(state, batch), expected, max(LARGEST_DIFFERENCE, rounding))


def initial_columns(state: TrainingState, columns: Columns, log: RunLog) -> TrainingState:
    """Returns the sliced model with `columns` and the initial weights of the run's seed.

    A pattern of zeros that the method found holds in these weights too.
    """
    initial = initial_sliced(state, columns)
    if isinstance(state.transform, ZeroPattern):
        initial.transform = state.transform.moved_to(initial.sharded)
        initial.transform.apply()
    log.say(f"slice: {sum(map(len, columns.values()))} columns are kept, with new weights by the run's seed")
    return initial


@torch.no_grad()
def logits_of(state: TrainingState, batch: Batch) -> torch.Tensor:
    """Returns the logits of a global batch under the current mask, in evaluation mode. A collective."""
    with as_evaluated(state.sharded.model):
        return gather_rows(state.logits(batch))
