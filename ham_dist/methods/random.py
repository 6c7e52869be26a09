"""Baseline: keeps columns chosen at random."""

from typing import Literal

import torch

from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import Method


class RandomSettings(MethodSettings):
    """Random: columns chosen at random, with the run's seed."""

    name: Literal["random"] = "random"


class Random(Method):
    """Keeps columns drawn with equal probability, with the run's seed."""

    Settings = RandomSettings
    searches = False

    def choice(self) -> torch.Tensor:
        """Returns the columns in a random order fixed by the seed, as many as fit into the budget."""
        generator = torch.Generator().manual_seed(self.space.seed)
        return self.space.budget.best(torch.rand(self.space.layout.size, generator=generator))
