"""Control: columns by chance."""

from typing import Literal

import torch

from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import Method


class RandomSettings(MethodSettings):
    """Random: columns by chance, from the run's seed."""

    name: Literal["random"] = "random"


class Random(Method):
    """Every column has the same chance to stay; drawn from the run's seed."""

    Settings = RandomSettings
    searches = False

    def choice(self) -> torch.Tensor:
        """Columns in an order drawn once for the seed, as far as they fit."""
        generator = torch.Generator().manual_seed(self.space.seed)
        return self.space.budget.best(torch.rand(self.space.layout.size, generator=generator))
