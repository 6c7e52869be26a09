"""The supernet in plain torch: nn.EmbeddingBag tables, torch.optim.Adam, Eq. 1 by autograd, one process.

It shares the dense part, the samples and their order with ham_dist, so that a difference in time or AUC comes
from everything else.
"""

import torch
from torch import nn
from torch.nn import functional

from ham_dist.config.schema import RunSettings
from ham_dist.data.reader.batch import Batch
from ham_dist.models.registry import build_interaction
from ham_dist.training.evaluation import area_under_roc
from ham_dist.training.samples import Samples


class PlainModel(nn.Module):
    """Logits of a batch."""

    def __init__(self, settings: RunSettings, num_embeddings: dict[str, int]) -> None:
        super().__init__()
        torch.manual_seed(settings.seed)
        dims = {field: min(settings.model.base_dim, rows) for field, rows in num_embeddings.items()}
        self.fields = list(dims)
        self.interaction = build_interaction(settings.model, dims)
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(rows, dims[field], mode="mean") for field, rows in num_embeddings.items()
        )
        for table in self.tables:
            nn.init.normal_(table.weight, std=settings.model.init_std)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (B,)."""
        by_field = batch.sparse_features.to_dict()
        columns = [
            table(by_field[field].values(), by_field[field].offsets()[:-1])
            for field, table in zip(self.fields, self.tables, strict=True)
        ]
        return self.interaction(torch.cat(columns, dim=1))

    def regularizer(self) -> torch.Tensor:
        """R(V), computed directly as in Eq. 1."""
        total = self.tables[0].weight.new_zeros(())
        for table in self.tables:
            gram = table.weight.T @ table.weight
            total = (
                total
                + (gram - torch.eye(gram.shape[0], device=gram.device)).square().sum() / gram.shape[0] ** 2
            )
        return total


def plain_epoch(
    model: PlainModel, optimizer: torch.optim.Optimizer, settings: RunSettings, samples: Samples, epoch: int
) -> None:
    """One epoch of pretraining."""
    model.train()
    for batch in samples.training("pretrain", epoch):
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model(batch), batch.labels)
        if settings.orthogonality.form == "gram":
            loss = loss + settings.orthogonality.weight * model.regularizer()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def plain_auc(model: PlainModel, samples: Samples, split: str) -> float:
    """AUC on a whole split."""
    model.eval()
    scored = [(model(batch), batch.labels) for batch in samples.evaluation(split)]
    return area_under_roc(
        torch.cat([logits for logits, _ in scored]), torch.cat([labels for _, labels in scored])
    )
