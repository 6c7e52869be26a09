"""How good a model is on one split."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc

from ham_dist.data.batch import Batch
from ham_dist.distributed.gather import gather_rows
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
    model = state.sharded.model
    model.eval()
    logits, labels = [], []
    for batch in batches:
        logits.append(model(batch.sparse_features))
        labels.append(batch.labels)
    model.train()
    return gather_rows(torch.cat(logits)), gather_rows(torch.cat(labels))


def evaluate(state: TrainingState, batches: Iterable[Batch]) -> Quality:
    """AUC and log loss over the whole split; the same on every rank."""
    logits, labels = predict(state, batches)
    loss = functional.binary_cross_entropy_with_logits(logits.double(), labels.double())
    return Quality(float(binary_auroc(logits, labels.long(), validate_args=False)), float(loss))
