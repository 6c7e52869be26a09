"""Learned soft thresholds: steps against plain torch, and zeros that stay through retraining."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.thresholds import Granularity
from ham_dist.errors import ShardingError
from ham_dist.export.bundle import open_bundle
from ham_dist.training.loop import weight_step
from ham_dist.training.soft_threshold import SoftThresholding
from ham_dist.training.state import open_supernet
from ham_dist.training.transform import ZeroPattern
from tests.support.plain_model import FIELDS, PlainModel
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import local_batch, plain_batch, settings, whole_tables
from tests.support.small_run import tiny_run
from tests.support.whole_runs import assert_same_bits, do_part, do_run, result

START, RATE, DECAY, STEPS = -2.0, 0.05, 0.01, 3
KINDS = {"user": "row_wise", "gender": "data_parallel", "movie": "column_wise", "genres": "table_wise"}
"""Every way to spread a table: rows, copies, columns, whole."""


def thresholded_steps(granularity: Granularity) -> dict[str, Any]:
    """On each rank: a few steps under thresholds, which are gathered with the tables."""
    run = settings("fm", orthogonality={"form": "none"}, sharding={"sharding_types": KINDS})
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    start = whole_tables(state)
    transform = SoftThresholding(state.sharded, granularity, START, learning_rate=RATE, weight_decay=DECAY)
    state.transform = transform
    losses = [
        float(process_group.sum_over_ranks(weight_step(state, local_batch(seed)))) for seed in range(STEPS)
    ]
    tables = whole_tables(state)
    pattern = transform.finish()
    return {
        "start": start, "losses": losses, "tables": tables, "shared": transform.thresholds.shared,
        "values": whole_tables(state), "counts": pattern.counts(),
    }  # fmt: skip


def plain_steps(granularity: Granularity, start: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The steps of `thresholded_steps` in plain torch; autograd computes the gradient of the thresholds."""
    model = PlainModel(settings("fm"), start)
    raw = [bag.weight for bag in model.bags]
    shapes = {"table": lambda v: (), "column": lambda v: v.shape[1:], "element": lambda v: v.shape}
    logits = [nn.Parameter(torch.full(shapes[granularity](values), START)) for values in raw]
    optimizer = torch.optim.Adam([*model.interaction.parameters(), *raw], lr=1e-3)
    of_logits = torch.optim.Adam(logits, lr=RATE, weight_decay=DECAY)

    def soft() -> list[torch.Tensor]:
        return [
            torch.sign(v) * functional.relu(v.abs() - torch.sigmoid(s))
            for v, s in zip(raw, logits, strict=True)
        ]

    losses = []
    for seed in range(STEPS):
        ids, labels = plain_batch(seed)
        optimizer.zero_grad()
        of_logits.zero_grad()
        columns = torch.cat(
            [
                functional.embedding_bag(values, table, offsets, mode="mean")
                for (values, offsets), table in zip(ids, soft(), strict=True)
            ],
            dim=1,
        )
        loss = functional.binary_cross_entropy_with_logits(model.interaction(columns), labels)
        loss.backward()
        optimizer.step()
        of_logits.step()
        losses.append(float(loss.detach()))
    return {"losses": losses, "tables": raw, "values": [v.detach() for v in soft()], "s": logits}


@pytest.mark.parametrize("granularity", ["table", "column", "element"])
def test_steps_equal_those_of_plain_torch_on_every_kind_of_table(granularity: Granularity) -> None:
    for found in run_on_ranks(2, thresholded_steps, granularity):
        expected = plain_steps(granularity, copy.deepcopy(found["start"]))
        torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-5, atol=1e-6)
        for field, raw, values in zip(FIELDS, expected["tables"], expected["values"], strict=True):
            torch.testing.assert_close(found["tables"][field], raw.detach(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found["values"][field], values, rtol=1e-4, atol=1e-5)
            assert found["counts"][field] == int(torch.count_nonzero(found["values"][field]))
        zeros = sum(int((values == 0).sum()) for values in found["values"].values())
        assert zeros > 20, "the thresholds are to prune something"
        if granularity != "element":
            of_all = torch.cat([s.detach().view(-1) for s in expected["s"]])
            torch.testing.assert_close(found["shared"], of_all, rtol=1e-4, atol=1e-5)


def test_fused_table_optimizers_have_no_thresholds() -> None:
    with pytest.raises(ShardingError, match=r"pep.*\n.*optimizer.tables"):
        run_on_ranks(1, thresholds_of_a_fused_table)


def thresholds_of_a_fused_table() -> None:
    """On one rank: thresholds of tables under a fused table optimizer."""
    fused = {"tables": "rowwise_adagrad"}
    run = settings("fm", optimizer=fused, orthogonality={"application": "decoupled"})
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    SoftThresholding(state.sharded, "table", START, learning_rate=RATE, weight_decay=DECAY)


def pruned_run(granularity: str, **retrain: Any) -> Any:
    method = {
        "name": "pep", "granularity": granularity, "threshold_init": -3.0, "learning_rate": 0.03,
    }  # fmt: skip
    return tiny_run(search={"method": method}, retrain={"max_epochs": 2, **retrain})


@pytest.mark.parametrize("granularity", ["column", "element"])
def test_zeros_stay_through_retraining_and_a_stopped_run_resumes_to_the_same_bits(
    granularity: str, tmp_path: Path
) -> None:
    run = pruned_run(granularity)
    do_run(run, tmp_path / "unbroken")
    for steps in (24 + 7, 24 + 8):  # within the search, and within retraining
        do_part(run, tmp_path / "run", steps)
    do_run(run, tmp_path / "run", resume=True)
    assert_same_bits(tmp_path / "run", tmp_path / "unbroken")
    found = result(tmp_path / "unbroken")
    assert all(found["kept_columns"].values()), "no column is removed"
    tables = open_bundle(tmp_path / "unbroken" / "bundle").tables().values()
    nonzeros = sum(int((table != 0).sum()) for table in tables)
    assert 0 < nonzeros < sum(table.numel() for table in tables)
    bits, rows = sum(-(-table.numel() // 8) for table in tables), sum(len(table) + 1 for table in tables)
    assert found["stored_bytes"] == {"bitmap": bits + 4 * nonzeros, "csr": 5 * nonzeros + 4 * rows}


def test_a_pattern_moves_to_another_plan() -> None:
    assert all(run_on_ranks(2, moved_pattern))


def moved_pattern() -> bool:
    """On each rank: the pattern of a table-wise model, moved to a row-wise one, has the same zeros."""
    here, there = (
        open_supernet(settings("fm", sharding={"sharding_type": kind}), FIELDS, torch.device("cpu"))
        for kind in ("table_wise", "row_wise")
    )
    generator = torch.Generator().manual_seed(1)
    for local in here.sharded.local.values():
        zeros = torch.rand(60, 8, generator=generator) < 0.5
        local.values[zeros[: local.shard.rows, : local.shard.columns]] = 0
    moved = ZeroPattern.of(here.sharded).moved_to(there.sharded)
    moved.apply()
    before, after = whole_tables(here), whole_tables(there)
    return all(torch.equal(before[field] == 0, after[field] == 0) for field in FIELDS)
