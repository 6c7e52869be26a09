"""How good a model is on one split."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional

from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks.gather import gather_rows
from ham_dist.embedding.mask import as_evaluated
from ham_dist.training.state import TrainingState


@dataclass(frozen=True)
class Quality:
    """Scores of one model on one split.

    auc:      area under the ROC curve, exact.
    log_loss: mean over the rows, in nats.
    """

    auc: float
    log_loss: float


@torch.no_grad()
def predict(state: TrainingState, batches: Iterable[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of every row of all ranks, (N,) float32 each, on every rank, in the order of ranks and batches; under the mask in force."""
    logits, labels = [], []
    with as_evaluated(state.sharded.model):
        for batch in state.batches(iter(batches)):
            logits.append(state.logits(batch))
            labels.append(batch.labels)
    return gather_rows(torch.cat(logits)), gather_rows(torch.cat(labels))


def evaluate(state: TrainingState, batches: Iterable[Batch]) -> Quality:
    """AUC and log loss over the whole split; the same on every rank."""
    logits, labels = predict(state, batches)
    loss = functional.binary_cross_entropy_with_logits(logits.double(), labels.double())
    return Quality(area_under_roc(logits, labels), float(loss))


def area_under_roc(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of (positive, negative) pairs in which the positive has the higher score, a tie counting half; exact.

    scores: (N,), any real numbers. Logits are better than probabilities, of which float32 rounds many to the same number near 0 and 1 (torchmetrics'
            binary_auroc takes the sigmoid of what it is given, and so makes such ties of its own).
    labels: (N,), 0 or 1.
    returns: 0.5 where one of the two kinds is missing: no order is right or wrong then.
    """
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    positives = torch.zeros(len(counts), dtype=torch.float64, device=scores.device).index_add_(
        0, place, labels.double()
    )
    negatives = counts - positives
    below = negatives.cumsum(0) - negatives / 2
    pairs = float(positives.sum() * negatives.sum())
    return float((positives * below).sum()) / pairs if pairs else 0.5
