"""Training with quantized tables: steps against plain torch, resumed runs, and the bundles of such runs."""

import copy
import json
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
from ham_dist.export.codecs.int8 import INT8
from ham_dist.export.package import export_run
from ham_dist.stages.quantize import FakeQuantization, require_quantizable
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


def quantized(table: torch.Tensor, start: torch.Tensor | None = None) -> torch.Tensor:
    """`table` by int4 with the scales of `start`."""
    return INT4.round_trip(table, INT4.fit(TableRows([table if start is None else start])))


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
    before = [table.detach().clone() for table in raw]
    optimizer = torch.optim.Adam([*model.interaction.parameters(), *raw], lr=1e-3)
    losses = []
    for seed in range(STEPS):
        ids, labels = plain_batch(seed)
        optimizer.zero_grad()
        tables = [
            table + (quantized(table.detach(), first) - table).detach()
            for table, first in zip(raw, before, strict=True)
        ]
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
            values = quantized(found["tables"][field], found["start"][field])
            torch.testing.assert_close(found["values"][field], values)
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
    do_part(run, tmp_path / "run", 12 + 12 + 24 + 8)  # 8 steps after retraining
    assert (tmp_path / "run" / "checkpoints" / "quantize").is_dir()
    do_run(run, tmp_path / "run", resume=True)
    assert_same_bits(tmp_path / "run", tmp_path / "unbroken")
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["epochs"]["quantize"] == 3
    assert result["weight_steps"]["quantize"] == 36
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


def test_dense_weights_stay_and_the_rate_of_the_tables_falls_to_zero(tmp_path: Path) -> None:
    sections = {"pretrain": {"max_epochs": 1}, "search": {"epochs": 1}}
    do_run(tiny_run(**sections, retrain={"max_epochs": 1}), tmp_path / "plain")
    retrain = {"max_epochs": 1, "precision": "int8", "precision_learning_rate": 1e-9}
    do_run(tiny_run(**sections, retrain=retrain), tmp_path / "still")
    do_run(tiny_run(**sections, retrain=retrain | {"precision_learning_rate": 1e-2}), tmp_path / "moved")
    plain, still, moved = (open_bundle(tmp_path / name / "bundle") for name in ("plain", "still", "moved"))
    for bundle in (still, moved):
        for name, values in bundle.dense().items():
            assert torch.equal(values, plain.dense()[name])
    for field, table in plain.tables().items():
        expected = INT8.round_trip(table, INT8.fit(TableRows([table])))
        torch.testing.assert_close(still.tables()[field], expected, rtol=0, atol=1e-6)
    assert len(losses(tmp_path / "still")) == 3
    assert losses(tmp_path / "still") != losses(tmp_path / "moved")
    assert len(set(losses(tmp_path / "still"))) == 1
    assert len(set(losses(tmp_path / "moved"))) == 3


def losses(run: Path) -> list[float]:
    """Validation log loss after each epoch with quantized tables."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["validation_logloss"] for row in rows if row["stage"] == "quantize"]
