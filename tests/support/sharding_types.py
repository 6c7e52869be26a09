"""Sharding types to test, alone and mixed, and plain torch's tables under the same table optimizers."""

from typing import Any

import torch
from torch import nn
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from ham_dist.config.schema import RunSettings
from tests.support.plain_model import PlainModel
from tests.support.sharded_model import (
    plain_batch,
    three_steps,
)

MIXED = {"user": "row_wise", "gender": "data_parallel", "movie": "column_wise", "genres": "table_wise"}
TURNED = {"user": "column_wise", "gender": "table_wise", "movie": "data_parallel", "genres": "row_wise"}


KINDS: dict[str, dict[str, Any]] = {
    "row_wise": {"sharding_type": "row_wise"},
    "column_wise": {"sharding_type": "column_wise"},
    "data_parallel": {"sharding_type": "data_parallel"},
    "grid": {"sharding_type": "grid"},
    "table_row_wise": {"sharding_type": "table_row_wise"},
    "mixed": {"sharding_types": MIXED},
    "turned": {"sharding_types": TURNED},
}
RATE = 0.05


WHOLE = {"gender": "table_wise", "genres": "table_wise"}
"""On 4 ranks their 3 and 9 rows cannot be spread."""


def all_cases(cases: dict[str, RunSettings]) -> dict[str, dict[str, Any]]:
    return {name: three_steps(run) for name, run in cases.items()}


TABLE_OPTIMIZERS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
}


def plain_tables(run: RunSettings, start: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The tables after three steps of plain torch with a table optimizer that the fused kernels have.

    Row-wise Adagrad uses the stored dim. Tables are rounded to their precision after each step, as in the
    kernels; Adagrad on CPU also rounds the step.
    """
    table_optimizer, dtype = TABLE_OPTIMIZERS[run.optimizer.tables], getattr(torch, run.precision.tables)
    stored = {field: nn.functional.pad(table, (0, -table.shape[1] % 4)) for field, table in start.items()}
    model = PlainModel(run, start)
    tables = [nn.Parameter(table) for table in stored.values()]
    for bag, table, values in zip(model.bags, tables, start.values(), strict=True):
        bag.weight.data = table.data[:, : values.shape[1]]
    options = {} if run.optimizer.tables == "sgd" else {"eps": 1e-8}
    of_tables, of_dense = (
        table_optimizer(tables, lr=RATE, **options),
        torch.optim.Adam(model.interaction.parameters(), lr=1e-3),
    )
    for seed in range(3):
        model.zero_grad()
        model.loss(*plain_batch(seed)).backward()
        for bag, table in zip(model.bags, tables, strict=True):
            assert bag.weight.grad is not None
            table.grad = nn.functional.pad(bag.weight.grad, (0, table.shape[1] - bag.weight.shape[1]))
        before = [table.detach().clone() for table in tables]
        of_tables.step()
        for table, values in zip(tables, before, strict=True):
            step = (values - table.detach()).to(dtype if run.optimizer.tables == "adagrad" else torch.float32)
            table.data.copy_((values - step).to(dtype))
        of_dense.step()
    return [bag.weight.detach() for bag in model.bags]
