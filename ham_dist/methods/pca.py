"""PCA: dims by the variance of the pretrained tables along their principal axes.

Wang et al., "Towards deeper, lighter and interpretable cross network for CTR prediction" (CIKM 2023,
arXiv:2311.04635), section on field-level dimension optimization: principal components of each table of a
trained model, as many as explain a share of its variance, then training from scratch with those dims. The
authors' code: FieldDimOpt.py of anonctr/GDCN.

Differences from the authors' code:
- The share follows from the target: it is the largest for which all dims fit (`rule = "share"`).
- `rule = "eigenvalues"` compares variances of different tables, which the authors do not.
- `weights = "lookups"` weighs the rows as the training samples look them up. In the authors' code all rows
  weigh alike, so that rare rows, which training has hardly moved, decide on the dims of large tables.

Only dims are chosen, so the first columns of a table are kept. They are not the principal axes: train the
sliced model from scratch, as the authors do (`retrain.start = "scratch"`).
"""

from functools import cached_property
from typing import Literal

import torch

from ham_dist.config.base import RowWeights
from ham_dist.config.schema import MethodSettings
from ham_dist.errors import ConfigError
from ham_dist.methods.method import Method


class PCASettings(MethodSettings):
    """PCA: as many columns of each table as its principal components need, from the pretrained tables."""

    name: Literal["pca"] = "pca"
    rule: Literal["share", "eigenvalues"] = "share"
    """`share`: the same share of the variance of every table, the largest that fits into the target.
    `eigenvalues`: the components with the largest variances of all tables together."""
    weights: RowWeights = "rows"
    """Weight of a row in the variance: `rows`: the same for all; `lookups`: the number of times that the
    training samples look it up, which takes one pass over them."""


class PCA(Method):
    """Keeps the first columns of each table, as many as principal components."""

    Settings = PCASettings
    settings: PCASettings
    searches = False

    def choice(self) -> torch.Tensor:
        """Returns the first columns of every table, as many as fit into the budget."""
        mask = self.space.budget.best(self._scores)
        for part in self.space.layout.slices.values():
            mask[part] = mask[part].sort(descending=True).values  # among equal scores, the first columns
        return mask

    @cached_property
    def _scores(self) -> torch.Tensor:
        """Scores of the components of all tables, (S,); computed once, as they may take a pass over data."""
        if self.space.covariances is None:
            raise ConfigError(
                "search.method = pca: the covariances of the tables are not known, expected a SearchSpace "
                "with covariances.\n  Pass them, or use another method."
            )
        covariances = self.space.covariances(self.settings.weights)
        return torch.cat([self._scores_of(covariances[table]) for table in self.space.layout.dims])

    def _scores_of(self, covariance: torch.Tensor) -> torch.Tensor:
        """Scores of a table's components (d,), in decreasing order."""
        variances = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0.0)
        if self.settings.rule == "eigenvalues":
            return variances.float()
        total = variances.sum()
        if not total:
            return torch.full_like(variances, -1.0).float()
        # A component is needed for every share above that of the components before it.
        return -((variances.cumsum(0) - variances) / total).float()
