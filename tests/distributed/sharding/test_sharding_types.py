"""Each sharding type, alone and mixed, against plain torch: losses, gradients, steps of each optimizer."""

from typing import Any

import pytest
import torch
from torchrec.distributed import comm

from ham_dist.config.schema import RunSettings
from ham_dist.data.reader.order import rows_of_rank
from ham_dist.distributed.ranks import process_group
from ham_dist.training.evaluation import predict
from ham_dist.training.state import open_supernet
from tests.support.plain_model import FIELDS, SINGLE_VALUED
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import (
    MODELS,
    part_of_batch,
    plain_three_steps,
    settings,
)
from tests.support.sharding_types import KINDS, RATE, TABLE_OPTIMIZERS, WHOLE, all_cases, plain_tables


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_sharding_type_equals_plain_torch(ranks: int, model: str) -> None:
    """To 1e-5, as table_wise: sums are in another order, and Adam divides gradients by their own size."""
    kinds = (
        KINDS
        if ranks < 4
        else {
            name: kind | {"sharding_types": kind.get("sharding_types", {}) | WHOLE}
            for name, kind in KINDS.items()
        }
    )
    cases = {name: settings(model, sharding=sharding) for name, sharding in kinds.items()}
    results = run_on_ranks(ranks, all_cases, cases)
    plain = plain_three_steps(cases["mixed"], results[0]["mixed"]["start"])
    for name in cases:
        first = results[0][name]
        placed = {placement.table.field: placement.sharding_type for placement in first["plan"].placements}
        assert placed == dict.fromkeys(FIELDS, kinds[name].get("sharding_type")) | kinds[name].get(
            "sharding_types", {}
        )
        torch.testing.assert_close(
            torch.tensor(first["losses"]), torch.tensor(plain["losses"]), rtol=0, atol=1e-6
        )
        torch.testing.assert_close(first["gradient"], plain["gradient"], rtol=1e-4, atol=1e-6)
        for (field, table), module in zip(first["tables"].items(), plain["model"].bags, strict=True):
            torch.testing.assert_close(
                table, module.weight.detach(), rtol=0, atol=1e-5, msg=f"{name}: {field}"
            )
            assert torch.equal(first["start"][field], results[0]["mixed"]["start"][field])
        assert first["regularizer"] == pytest.approx(float(plain["model"].regularizer().detach()), rel=1e-5)
        torch.testing.assert_close(
            first["norms"], torch.cat([module.weight.detach().norm(dim=0) for module in plain["model"].bags])
        )
        for other in results[1:]:
            assert other[name]["losses"] == first["losses"]
            assert torch.equal(other[name]["gradient"], first["gradient"])
            assert all(
                torch.equal(other[name]["dense"][key], values) for key, values in first["dense"].items()
            )


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_table_moves_alike_under_every_optimizer_and_sharding_type(ranks: int) -> None:
    """A data-parallel table has no fused kernel; TorchRec would silently leave it unchanged."""
    cases = {}
    for table_optimizer in TABLE_OPTIMIZERS:
        for name, sharding in KINDS.items():
            apart = name in ("column_wise", "grid", "mixed", "turned")
            if table_optimizer == "rowwise_adagrad" and apart:
                if name in ("column_wise", "grid"):
                    continue
                sharding = {
                    "sharding_types": {
                        field: "row_wise" if kind == "column_wise" else kind
                        for field, kind in sharding["sharding_types"].items()
                    }
                }
            options = {"tables": table_optimizer, "tables_learning_rate": RATE}
            cases[f"{table_optimizer} {name}"] = settings(
                "dcnv2", optimizer=options, sharding=sharding, orthogonality={"form": "none"}
            )
    results = run_on_ranks(ranks, all_cases, cases)[0]
    for table_optimizer in TABLE_OPTIMIZERS:
        plain = plain_tables(
            cases[f"{table_optimizer} row_wise"], results[f"{table_optimizer} row_wise"]["start"]
        )
        for name, found in results.items():
            if name.startswith(f"{table_optimizer} "):
                for (field, table), expected in zip(found["tables"].items(), plain, strict=True):
                    torch.testing.assert_close(table, expected, rtol=0, atol=2e-5, msg=f"{name}: {field}")
                    assert not torch.equal(table, found["start"][field]), (name, field)


def on_two_hosts(cases: dict[str, RunSettings]) -> dict[str, dict[str, Any]]:
    """Makes four ranks act as two hosts of two, through the environment variables that torchrun sets."""
    rank = process_group.rank()
    before = comm._INTRA_PG, comm._CROSS_PG
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RANK": rank,
            "WORLD_SIZE": 4,
            "LOCAL_RANK": rank % 2,
            "LOCAL_WORLD_SIZE": 2,
        }.items():
            patch.setenv(name, str(value))
        # Created once per process, which outlives its group in tests.
        patch.setattr(comm, "_INTRA_PG", None)
        patch.setattr(comm, "_CROSS_PG", None)
        results = all_cases(cases)
    comm._INTRA_PG, comm._CROSS_PG = before
    return results


def test_sharding_types_of_several_hosts_equal_plain_torch() -> None:
    """To 1e-5, as above. With two hosts, table_row_wise and grid differ from row_wise and column_wise."""
    kinds: dict[str, dict[str, Any]] = {
        "table_row_wise": {"sharding_type": "table_row_wise", "sharding_types": WHOLE},
        "grid": {"sharding_type": "grid", "sharding_types": WHOLE},
        "both": {
            "sharding_types": {
                "user": "grid",
                "gender": "data_parallel",
                "movie": "table_row_wise",
                "genres": "column_wise",
            }
        },
    }
    cases = {name: settings("dcnv2", sharding=sharding) for name, sharding in kinds.items()}
    results = run_on_ranks(4, on_two_hosts, cases)[0]
    plain = plain_three_steps(cases["grid"], results["grid"]["start"])
    placed = results["both"]["plan"].groups["tables.ebc"]
    assert [(part.rank // 2, part.first_column) for part in placed["user"].shards] == [
        (0, 0),
        (0, 0),
        (1, 4),
        (1, 4),
    ]
    assert len({part.rank // 2 for part in placed["movie"].shards}) == 1
    for name, found in results.items():
        torch.testing.assert_close(
            torch.tensor(found["losses"]), torch.tensor(plain["losses"]), rtol=0, atol=1e-6, msg=name
        )
        torch.testing.assert_close(found["gradient"], plain["gradient"], rtol=1e-4, atol=1e-6)
        for (field, table), module in zip(found["tables"].items(), plain["model"].bags, strict=True):
            torch.testing.assert_close(
                table, module.weight.detach(), rtol=0, atol=1e-5, msg=f"{name}: {field}"
            )


def few_rows(cases: dict[str, RunSettings]) -> dict[str, list[torch.Tensor]]:
    """Returns the logits of global batches that leave some ranks with fewer rows, or with none."""
    results = {}
    for name, run in cases.items():
        state = open_supernet(run, FIELDS, torch.device("cpu"), SINGLE_VALUED)
        parts = (
            (rows, *rows_of_rank(rows, process_group.rank(), process_group.world_size()))
            for rows in (1, 2, 7, 33, 50)
        )
        batches = [part_of_batch(rows, rows, low, high) for rows, low, high in parts]
        results[name] = [predict(state, [batch])[0] for batch in batches]
    return results


def test_any_number_of_rows_is_looked_up_under_every_sharding_type() -> None:
    """To 1e-6: sums over ranks and means are in another order."""
    cases = {name: settings("dcnv2", sharding=sharding) for name, sharding in KINDS.items()}
    plain = run_on_ranks(1, few_rows, {"plain": settings("dcnv2")})[0]["plain"]
    for name, found in run_on_ranks(3, few_rows, cases)[0].items():
        for ours, theirs in zip(found, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=name)
