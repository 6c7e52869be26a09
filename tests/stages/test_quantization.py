"""Retraining with quantized tables: steps against plain torch, resumed runs, and the bundles of such runs."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from ham_dist.distributed.ranks import process_group
from ham_dist.errors import ConfigError, ShardingError
from ham_dist.export.bundle import open_bundle
from ham_dist.export.codecs.codec import TableRows
from ham_dist.export.codecs.int4 import INT4
from ham_dist.export.package import export_run
from ham_dist.stages.quantization import FakeQuantization, require_quantizable
from ham_dist.training.loop import weight_step
from ham_dist.training.state import open_supernet
from tests.support.plain_model import FIELDS, PlainModel
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import local_batch, plain_batch, settings, whole_tables
from tests.support.small_run import tiny_run
from tests.support.whole_runs import assert_same_bits, do_part, do_run

STEPS = 2
KINDS = {"user": "table_wise", "gender": "data_parallel", "movie": "column_wise", "genres": "table_wise"}
"""Every way to spread a table without cutting its columns."""


def quantized(table: torch.Tensor) -> torch.Tensor:
    return INT4.round_trip(table, INT4.fit(TableRows([table])))


def quantized_steps() -> dict[str, Any]:
    """On each rank: a few steps under quantization."""
    run = settings("fm", orthogonality={"form": "none"}, sharding={"sharding_types": KINDS})
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    start = whole_tables(state)
    transform = FakeQuantization(state.sharded, INT4)
    state.transform = transform
    losses = [
        float(process_group.sum_over_ranks(weight_step(state, local_batch(seed)))) for seed in range(STEPS)
    ]
    tables = whole_tables(state)
    transform.replace_for_good()
    return {"start": start, "losses": losses, "tables": tables, "values": whole_tables(state)}


def plain_steps(start: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The steps of `quantized_steps` in plain torch, with the straight-through gradient by autograd."""
    model = PlainModel(settings("fm"), start)
    raw = [bag.weight for bag in model.bags]
    optimizer = torch.optim.Adam([*model.interaction.parameters(), *raw], lr=1e-3)
    losses = []
    for seed in range(STEPS):
        ids, labels = plain_batch(seed)
        optimizer.zero_grad()
        tables = [table + (quantized(table.detach()) - table).detach() for table in raw]
        columns = torch.cat(
            [
                functional.embedding_bag(values, table, offsets, mode="mean")
                for (values, offsets), table in zip(ids, tables, strict=True)
            ],
            dim=1,
        )
        loss = functional.binary_cross_entropy_with_logits(model.interaction(columns), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return {"losses": losses, "tables": [table.detach() for table in raw]}


def test_steps_equal_those_of_plain_torch() -> None:
    for found in run_on_ranks(2, quantized_steps):
        expected = plain_steps(copy.deepcopy(found["start"]))
        torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-5, atol=1e-6)
        for field, table in zip(FIELDS, expected["tables"], strict=True):
            torch.testing.assert_close(found["tables"][field], table, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found["values"][field], quantized(found["tables"][field]))
            assert not torch.equal(found["tables"][field], found["start"][field])


def row_wise() -> str:
    run = settings("fm", sharding={"sharding_types": KINDS | {"user": "row_wise"}})
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    try:
        FakeQuantization(state.sharded, INT4)
    except ShardingError as error:
        return str(error)
    return "no error"


def test_rows_on_several_ranks_are_refused() -> None:
    for message in run_on_ranks(2, row_wise):
        assert 'retrain.precision = "int4": the rows of user are on several ranks' in message


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optimizer": {"tables": "rowwise_adagrad"}}, "'rowwise_adagrad' is fused into the backward pass"),
        ({"search": {"method": "pep"}}, 'the zeros of search.method = "pep"'),
    ],
)
def test_settings_without_quantization_are_refused_before_training(
    sections: dict[str, Any], message: str
) -> None:
    if "optimizer" in sections:
        sections |= {"orthogonality": {"application": "decoupled"}}
    require_quantizable(tiny_run(**sections))
    with pytest.raises(ConfigError, match=message):
        require_quantizable(tiny_run(**sections, retrain={"precision": "int4"}))


def test_a_run_ends_with_quantized_tables_that_int4_keeps(tmp_path: Path) -> None:
    run = tiny_run(
        pretrain={"max_epochs": 1}, search={"epochs": 1}, retrain={"max_epochs": 2, "precision": "int4"}
    )
    do_run(run, tmp_path / "unbroken")
    do_part(run, tmp_path / "run", 24 + 8)  # within retraining
    do_run(run, tmp_path / "run", resume=True)
    assert_same_bits(tmp_path / "run", tmp_path / "unbroken")
    tables = open_bundle(tmp_path / "run" / "bundle").tables()
    for table in tables.values():
        assert max(len(column.unique()) for column in table.T) <= 16
    report = export_run(tmp_path / "run", tmp_path / "int4", "int4")
    assert report["max_difference"] <= 1e-5
    assert report["auc_difference"] == pytest.approx(0, abs=1e-4)
    for field, table in open_bundle(tmp_path / "int4").tables().items():
        torch.testing.assert_close(table, tables[field], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_numbers_that_int4_gave_are_given_again(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = int(torch.randint(1, 200, (), generator=generator))
    table = torch.randn(rows, 5, generator=generator)
    table[0] *= 6
    once = quantized(table)
    torch.testing.assert_close(quantized(once), once, rtol=0, atol=1e-5)
