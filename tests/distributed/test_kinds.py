"""Every kind of sharding, and kinds mixed, against plain torch without any: losses, gradients, and three steps under every rule."""

from typing import Any

import pytest
import torch
from torch import nn
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from ham_dist.config.schema import RunSettings
from tests.distributed.reference import PlainModel
from tests.distributed.test_sharded import plain_batch, plain_three_steps, settings, three_steps
from tests.multiprocess import run_on_ranks

MIXED = {"user": "row_wise", "gender": "data_parallel", "movie": "column_wise", "genres": "table_wise"}
TURNED = {"user": "column_wise", "gender": "table_wise", "movie": "data_parallel", "genres": "row_wise"}
KINDS: dict[str, dict[str, Any]] = {
    "row_wise": {"kind": "row_wise"},
    "column_wise": {"kind": "column_wise"},
    "data_parallel": {"kind": "data_parallel"},
    "grid": {"kind": "grid"},
    "table_row_wise": {"kind": "table_row_wise"},
    "mixed": {"tables": MIXED},
    "turned": {"tables": TURNED},
}
RATE = 0.05


def all_cases(cases: dict[str, RunSettings]) -> dict[str, dict[str, Any]]:
    return {name: three_steps(run) for name, run in cases.items()}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_kind_equals_plain_torch(ranks: int) -> None:
    """To 1e-5, as table_wise: sums run in another order, and Adam divides small gradients by their own size."""
    cases = {name: settings("dcnv2", sharding=sharding) for name, sharding in KINDS.items()}
    results = run_on_ranks(ranks, all_cases, cases)
    plain = plain_three_steps(cases["mixed"], results[0]["mixed"]["start"])
    for name in cases:
        first = results[0][name]
        torch.testing.assert_close(torch.tensor(first["losses"]), torch.tensor(plain["losses"]), rtol=0, atol=1e-6)
        torch.testing.assert_close(first["gradient"], plain["gradient"], rtol=1e-4, atol=1e-6)
        for (field, table), module in zip(first["tables"].items(), plain["model"].bags, strict=True):
            torch.testing.assert_close(table, module.weight.detach(), rtol=0, atol=1e-5, msg=f"{name}: {field}")
            assert torch.equal(first["start"][field], results[0]["mixed"]["start"][field])
        assert first["regularizer"] == pytest.approx(float(plain["model"].regularizer().detach()), rel=1e-5)
        torch.testing.assert_close(first["norms"], torch.cat([module.weight.detach().norm(dim=0) for module in plain["model"].bags]))
        for other in results[1:]:
            assert other[name]["losses"] == first["losses"]
            assert torch.equal(other[name]["gradient"], first["gradient"])
            assert all(torch.equal(other[name]["dense"][key], values) for key, values in first["dense"].items())


RULES: dict[str, Any] = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rowwise_adagrad": RowWiseAdagrad}


def plain_tables(run: RunSettings, start: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The tables after three steps of plain torch under a rule that the fused kernels have; row-wise Adagrad sees the width that is stored."""
    rule = RULES[run.optimizer.tables]
    stored = {field: nn.functional.pad(table, (0, -table.shape[1] % 4)) for field, table in start.items()}
    model = PlainModel(run, start)
    tables = [nn.Parameter(table) for table in stored.values()]
    for bag, table, values in zip(model.bags, tables, start.values(), strict=True):
        bag.weight.data = table.data[:, : values.shape[1]]
    options = {} if run.optimizer.tables == "sgd" else {"eps": 1e-8}
    of_tables, of_dense = rule(tables, lr=RATE, **options), torch.optim.Adam(model.interaction.parameters(), lr=1e-3)
    for seed in range(3):
        model.zero_grad()
        model.loss(*plain_batch(seed)).backward()
        for bag, table in zip(model.bags, tables, strict=True):
            assert bag.weight.grad is not None
            table.grad = nn.functional.pad(bag.weight.grad, (0, table.shape[1] - bag.weight.shape[1]))
        of_tables.step()
        of_dense.step()
    return [bag.weight.detach() for bag in model.bags]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_table_moves_alike_under_every_rule_and_kind(ranks: int) -> None:
    """A data-parallel table has no fused kernel, where TorchRec would leave it as it is without a word."""
    cases = {}
    for rule in RULES:
        for name, sharding in KINDS.items():
            apart = name in ("column_wise", "grid", "mixed", "turned")
            if rule == "rowwise_adagrad" and apart:
                if name in ("column_wise", "grid"):
                    continue
                sharding = {"tables": {field: "row_wise" if kind == "column_wise" else kind for field, kind in sharding["tables"].items()}}
            options = {"tables": rule, "tables_learning_rate": RATE}
            cases[f"{rule} {name}"] = settings("dcnv2", optimizer=options, sharding=sharding, orthogonality={"form": "none"})
    results = run_on_ranks(ranks, all_cases, cases)[0]
    for rule in RULES:
        plain = plain_tables(cases[f"{rule} row_wise"], results[f"{rule} row_wise"]["start"])
        for name, found in results.items():
            if name.startswith(f"{rule} "):
                for (field, table), expected in zip(found["tables"].items(), plain, strict=True):
                    torch.testing.assert_close(table, expected, rtol=0, atol=2e-5, msg=f"{name}: {field}")
                    assert not torch.equal(table, found["start"][field]), (name, field)
