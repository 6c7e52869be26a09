"""Quality of a model on one split: AUC and log loss, both exact.

No rank needs the rows of another, and no result depends on how the rows are spread over ranks.
"""

from collections.abc import Iterable, Iterator
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
"""Scores that each rank offers to find the ranges of scores by that the ranks share out."""


@dataclass(frozen=True)
class Quality:
    """Scores of one model on one split.

    Attributes:
        auc: area under the ROC curve, exact; None if all labels of the split are alike.
        log_loss: mean over the rows, in nats; the losses of the rows are float64, their mean is correctly rounded.
    """

    auc: float | None
    log_loss: float

    @property
    def defined_auc(self) -> float:
        """The AUC of a split that models are chosen by.

        Raises:
            DataError: All labels of the split are alike.
        """
        if self.auc is None:
            raise DataError(
                "validation: all samples have the same label, so that no AUC tells one model from another. "
                "Prepare the data again with both labels in its validation split"
            )
        return self.auc


def predict(state: TrainingState, batches: Iterable[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of all rows under the mask in force, on every rank. A collective, for few rows: each rank holds all of them.

    Returns:
        (N,) in the precision of the dense weights, and (N,) float32; by rank, and by batch within a rank.
    """
    scored = list(_scored(state, batches))
    return (
        gather_rows(torch.cat([logits for logits, _ in scored])),
        gather_rows(torch.cat([labels for _, labels in scored])),
    )


def evaluate(state: TrainingState, batches: Iterable[Batch]) -> Quality:
    """AUC and log loss over the whole split; the same on every rank. A collective."""
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
    with as_evaluated(state.sharded.model):
        for batch in state.batches(iter(batches)):
            yield state.logits(batch), batch.labels


def undefined_auc(manifest: Manifest, split: str) -> str | None:
    """Why a split has no AUC, such as `all 120 samples of test have label 0`; None if it has one."""
    entry = manifest.splits.get(split)
    if entry is None or 0 < entry.positives < entry.rows:
        return None
    return f"all {entry.rows:,} samples of {split} have label {int(entry.positives > 0)}"


def area_under_roc(scores: torch.Tensor, labels: torch.Tensor) -> float | None:
    """The share of (positive, negative) pairs in which the positive has the higher score, a tie counting half; over all ranks' rows. A collective.

    All counts are integers, so that the result is exact and the same on any number of ranks. Each rank counts the pairs within one range of scores;
    of equal scores a rank sends one, with the number of its rows.

    Args:
        scores: (n,) of this rank, any real numbers. Logits are better than probabilities, of which float32 rounds many to the same number near 0
            and 1 (torchmetrics' binary_auroc takes the sigmoid of its input, and so makes such ties of its own).
        labels: (n,), 0 or 1.
    Returns:
        None if there are no pairs, since all rows have one label.
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
    # Twice the pairs in order: each positive with the negatives of lower scores, and half of those of its own.
    below = 2 * (lower + negatives.cumsum(0)) - negatives
    ordered = sum(process_group.gather_objects(int((positives * below).sum())))
    pairs = sum(positives_of for positives_of, _ in totals) * sum(negatives_of for _, negatives_of in totals)
    return ordered / (2 * pairs) if pairs else None


def _counted(
    scores: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Different scores in rising order, and how many positives and negatives have each."""
    different, place = torch.unique(scores, return_inverse=True)
    counts = torch.zeros(2, len(different), dtype=torch.int64, device=scores.device)
    for number, rows in enumerate((positives, negatives)):
        counts[number].index_add_(0, place, rows.long())
    return different, counts[0], counts[1]


def _ranges(scores: torch.Tensor) -> torch.Tensor:
    """W - 1 scores, rising, between which the ranks have about as many different scores each; the same on every rank. A collective.

    Args:
        scores: (n,), this rank's, in rising order.
    """
    ranks = process_group.world_size()
    offered = scores[:: max(1, len(scores) // SAMPLED_SCORES)].tolist()
    sample = sorted(score for of_rank in process_group.gather_objects(offered) for score in of_rank)
    chosen = [sample[len(sample) * number // ranks] for number in range(1, ranks)] if sample else []
    return torch.tensor(chosen, dtype=scores.dtype, device=scores.device)
