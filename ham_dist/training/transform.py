"""Changes of the tables between a step's forward pass and its update, such as thresholds."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.exchange import move
from ham_dist.distributed.sharding.local_table import LocalTable
from ham_dist.distributed.sharding.model import TABLES, ShardedModel


class TableTransform(ABC):
    """A function of the tables under search that lookups read in place of the tables.

    It needs the dense kernel, whose tables have gradients: before a forward pass the tables are replaced by
    the function's values, and after the backward pass they are put back, with the gradient of the original
    numbers.
    """

    @abstractmethod
    def before_forward(self) -> None:
        """Replaces the tables by the values of the function."""

    @abstractmethod
    def after_backward(self) -> None:
        """Puts the tables back, and turns the gradient of the values into that of the tables."""

    @abstractmethod
    def put_back(self) -> None:
        """Puts the tables back without a gradient."""

    def after_step(self) -> None:
        """Called when the optimizers have updated all weights."""
        return

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the tables hold the values of the function, for evaluation."""
        self.before_forward()
        try:
            yield
        finally:
            self.put_back()


class ReplacedTables(TableTransform):
    """A transform that keeps the tables while their values under a function are in their place.

    Args:
        model: The tables.
    """

    def __init__(self, model: ShardedModel) -> None:
        self.model = model
        self.before: dict[str, torch.Tensor] = {}
        """This rank's shards of the tables, between `before_forward` and `put_back`."""

    @abstractmethod
    def values_of(self, field: str, local: LocalTable) -> torch.Tensor:
        """Returns the values of the function, with the shape of `local.columns`."""

    @torch.no_grad()
    def before_forward(self) -> None:
        for field, local in self.model.local.items():
            self.before[field] = local.columns.clone()
            local.columns.copy_(self.values_of(field, local))

    @torch.no_grad()
    def put_back(self) -> None:
        for field, local in self.model.local.items():
            local.columns.copy_(self.before.pop(field))

    def replace_for_good(self) -> None:
        """Replaces the tables by the values of the function."""
        self.before_forward()
        self.before.clear()


class ZeroPattern(TableTransform):
    """Keeps the zeros of a sparse table: the loss has no gradient for them, and each step sets them again.

    The latter is for the regularizer, which moves them too.

    Args:
        model: The tables.
        pattern: 1 where a number may change and 0 elsewhere, for this rank's shard of each table, with the
            shape of `LocalTable.values`.
    """

    def __init__(self, model: ShardedModel, pattern: Mapping[str, torch.Tensor]) -> None:
        self.model = model
        self.pattern = dict(pattern)

    @classmethod
    def of(cls, model: ShardedModel) -> "ZeroPattern":
        """Returns the pattern of the numbers that are not 0 in the tables under search."""
        return cls(model, {field: (local.values != 0).float() for field, local in model.local.items()})

    @torch.no_grad()
    def apply(self) -> None:
        """Sets the zeros of the pattern in the tables."""
        for field, local in self.model.local.items():
            local.values.mul_(self.pattern[field])

    def before_forward(self) -> None:
        return

    def after_backward(self) -> None:
        for field, local in self.model.local.items():
            assert local.parameter is not None
            assert local.parameter.grad is not None
            local.parameter.grad.mul_(self.pattern[field])

    def put_back(self) -> None:
        return

    def after_step(self) -> None:
        self.apply()

    def moved_to(self, model: ShardedModel) -> "ZeroPattern":
        """Returns the pattern for the same tables, with all of their columns, under another plan.

        A collective.
        """
        moved: dict[str, torch.Tensor] = {}
        before, after = self.model.plan.groups[TABLES], model.plan.groups[TABLES]
        for field, placement in after.items():
            local = model.local_table(f"{TABLES}/{field}")
            into = None if local is None else torch.ones_like(local.values)
            move(
                before[field].shards,
                self.pattern.get(field),
                placement.shards,
                into,
                torch.arange(placement.table.embedding_dim),
                replicated=before[field].replicated,
                device=model.device,
            )
            if into is not None:
                moved[field] = into
        return ZeroPattern(model, moved)

    def counts(self) -> dict[str, int]:
        """Returns the numbers that are not 0 of each table, the same on every rank. A collective."""
        found = {
            field: int(torch.count_nonzero(local.columns))
            for field, local in self.model.local.items()
            if not (placement := self.model.plan.groups[TABLES][field]).replicated
            or placement.shards[0].rank == process_group.rank()
        }
        total = dict.fromkeys(self.model.plan.groups[TABLES], 0)
        for of_rank in process_group.gather_objects(found):
            for field, count in of_rank.items():
                total[field] += count
        return total
