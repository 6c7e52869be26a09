"""AUC and log loss of a model on one split, both exact.

No rank needs all rows of the split, and the results do not depend on how the rows are spread over the ranks.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.nn import functional

from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.exact_mean import mean_over_ranks
from ham_dist.distributed.ranks.gather import exchange_rows, gather_rows
from ham_dist.embedding.mask import as_evaluated
from ham_dist.errors import DataError
from ham_dist.training.state import TrainingState

SAMPLED_SCORES = 1024
"""Scores that each rank samples to divide the scores into one range per rank."""


@dataclass(frozen=True)
class Quality:
    """Scores of one model on one split.

    Attributes:
        auc: Exact area under the ROC curve; None if all labels of the split are the same.
        log_loss: Mean over the rows, in nats; the losses of the rows are float64, their mean is correctly
            rounded.
    """

    auc: float | None
    log_loss: float

    @property
    def defined_auc(self) -> float:
        """The AUC, for a split by which models are compared.

        Raises:
            DataError: All labels of the split are the same.
        """
        if self.auc is None:
            raise DataError(
                "validation: all samples have the same label, so the validation AUC is undefined. "
                "Prepare the data again with both labels in its validation split"
            )
        return self.auc


def predict(state: TrainingState, batches: Iterable[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits and labels of all rows under the current mask, on every rank. A collective.

    Only for few rows: each rank holds all of them.

    Returns:
        Logits (N,) in the precision of the dense weights, and labels (N,) float32; ordered by rank, then by
        batch.
    """
    scored = list(_scored(state, batches))
    return (
        gather_rows(torch.cat([logits for logits, _ in scored])),
        gather_rows(torch.cat([labels for _, labels in scored])),
    )


def evaluate(state: TrainingState, batches: Iterable[Batch]) -> Quality:
    """Returns AUC and log loss over the whole split, the same on every rank. A collective."""
    scored = list(_scored(state, batches))
    losses = (
        functional.binary_cross_entropy_with_logits(logits.double(), labels.double(), reduction="none")
        for logits, labels in scored
    )
    log_loss = mean_over_ranks(losses, state.sharded.device)
    logits, labels = (torch.cat(parts) for parts in zip(*scored, strict=True))
    return Quality(area_under_roc(logits, labels), log_loss)


@torch.no_grad()
def _scored(state: TrainingState, batches: Iterable[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits and labels of this rank's part of each batch."""
    applied = nullcontext() if state.transform is None else state.transform.applied()
    with as_evaluated(state.sharded.model), applied:
        for batch in state.batches(iter(batches)):
            yield state.logits(batch), batch.labels


def undefined_auc(manifest: Manifest, split: str) -> str | None:
    """Returns why a split has no AUC, such as `all 120 samples of test have label 0`; None if it has one."""
    entry = manifest.splits.get(split)
    if entry is None or 0 < entry.positives < entry.rows:
        return None
    return f"all {entry.rows:,} samples of {split} have label {int(entry.positives > 0)}"


def area_under_roc(scores: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Returns the area under the ROC curve over the rows of all ranks. A collective.

    It is the share of (positive, negative) pairs in which the positive has the higher score; a tie counts
    half. All counts are integers, so the result is exact and the same on any number of ranks. Each rank
    counts the pairs within one range of scores; equal scores are sent once, with their number of rows.

    Args:
        scores: This rank's scores, (n,), any real numbers. Prefer logits to probabilities: near 0 and 1
            float32 rounds many probabilities to the same number (torchmetrics' binary_auroc takes the sigmoid
            of its input, and so creates such ties).
        labels: (n,), 0 or 1.
    Returns:
        The area; None if all rows have the same label, so that there are no pairs.
    """
    found = _counted(scores.double(), labels > 0.5, labels <= 0.5)
    if process_group.world_size() > 1:
        counts = torch.bincount(
            torch.bucketize(found[0], _ranges(found[0])), minlength=process_group.world_size()
        )
        # Counts of rows are exact in float64.
        received = exchange_rows(torch.stack([part.double() for part in found], dim=1), counts.tolist())
        found = _counted(*received.unbind(dim=1))
    _, positives, negatives = found
    totals = process_group.gather_objects((int(positives.sum()), int(negatives.sum())))
    lower = sum(negatives_of for _, negatives_of in totals[: process_group.rank()])
    ordered = sum(process_group.gather_objects(ordered_pairs(positives, negatives, lower)))
    pairs = sum(positives_of for positives_of, _ in totals) * sum(negatives_of for _, negatives_of in totals)
    return ordered / (2 * pairs) if pairs else None


def ordered_pairs(positives: torch.Tensor, negatives: torch.Tensor, lower: int) -> int:
    """Returns twice the number of pairs in which the positive has the higher score; a tie counts half.

    Exact for any numbers of rows: the number of pairs may exceed int64, as it does from about 4e9 rows.

    Args:
        positives: Rows with label 1 for each distinct score, ascending, (n,) int64.
        negatives: The same for label 0.
        lower: Number of negatives of lower scores on other ranks.
    """
    below = 2 * (lower + negatives.cumsum(0)) - negatives
    # The factor is cut into digits of so few bits that their products with `positives` add up to less than
    # 2^63.
    bits = 63 - int(positives.sum()).bit_length()
    digits = ((shift, below >> shift & (1 << bits) - 1) for shift in range(0, 63, bits))
    return sum(int((positives * digit).sum()) << shift for shift, digit in digits)


def _counted(
    scores: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distinct scores in ascending order, and the numbers of positives and negatives with each."""
    different, place = torch.unique(scores, return_inverse=True)
    counts = torch.zeros(2, len(different), dtype=torch.int64, device=scores.device)
    for number, rows in enumerate((positives, negatives)):
        counts[number].index_add_(0, place, rows.long())
    return different, counts[0], counts[1]


def _ranges(scores: torch.Tensor) -> torch.Tensor:
    """W - 1 ascending scores that divide the distinct scores into W ranges of about equal size. A collective.

    Args:
        scores: This rank's scores, (n,), ascending.
    Returns:
        (W - 1,), the same on every rank.
    """
    ranks = process_group.world_size()
    offered = scores[:: max(1, len(scores) // SAMPLED_SCORES)].tolist()
    sample = sorted(score for of_rank in process_group.gather_objects(offered) for score in of_rank)
    chosen = [sample[len(sample) * number // ranks] for number in range(1, ranks)] if sample else []
    return torch.tensor(chosen, dtype=scores.dtype, device=scores.device)
