"""Distillation from the supernet: its probabilities take part in the labels of retraining.

Shape letter: B rows of a batch on this rank.
"""

from dataclasses import dataclass, replace

import torch

from ham_dist.data.reader.batch import Batch
from ham_dist.embedding.mask import as_evaluated
from ham_dist.training.state import TrainingState


@dataclass(frozen=True)
class Teacher:
    """A trained model whose probabilities another one learns.

    The loss (1 - w) * log loss(y) + w * cross entropy(q), with the labels y and the teacher's probabilities
    q (at temperature 1), is the log loss for the labels (1 - w) y + w q, as the log loss is linear in the
    label. So only labels change.

    A step takes one forward pass of the teacher in addition. The supernet is in memory during retraining in
    any case, and the plan of the sliced model leaves room for its tables and optimizer state; distillation
    adds the activations of that pass.

    Attributes:
        state: The teacher, with the mask under which it is used; it does not change.
        weight: w.
    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), section 2.
    """

    state: TrainingState
    weight: float

    @torch.no_grad()
    def softened(self, batch: Batch) -> Batch:
        """Returns `batch` with the labels (1 - w) y + w q, (B,) float32.

        Args:
            batch: A training batch. Its ids may be prepared for another model's sharding plan; the teacher
                exchanges them by its own.
        """
        own = Batch(batch.sparse_features, batch.labels, batch.global_rows)
        with as_evaluated(self.state.sharded.model):
            probabilities = torch.sigmoid(self.state.logits(own))
        return replace(batch, labels=torch.lerp(batch.labels, probabilities.to(batch.labels), self.weight))
