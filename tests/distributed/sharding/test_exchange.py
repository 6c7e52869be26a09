"""Exchanges of table rows between ranks: slicing, bundle chunks, checkpoints under other plans. All exact."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from ham_dist.config.schema import RunSettings
from ham_dist.distributed.checkpoint import storage
from ham_dist.distributed.planning.placement import TableShard
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding import exchange
from ham_dist.distributed.sharding.exchange import even_blocks, move
from ham_dist.distributed.sharding.model import TABLES
from ham_dist.training.loop import weight_step
from ham_dist.training.slicing import slice_state
from ham_dist.training.state import TrainingState, open_supernet
from tests.support.plain_model import FIELDS
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import local_batch, settings, whole, whole_tables
from tests.support.sharding_types import KINDS, MIXED, TURNED

OPEN = {"user": [0, 3, 5, 7], "gender": [], "movie": [1, 2, 4, 6, 7], "genres": [2]}
MODEL = {"name": "fm", "first_order": "table", "init_std": 0.3, "base_dim": 8}


def trained(run: RunSettings) -> TrainingState:
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    for seed in (0, 1):
        weight_step(state, local_batch(seed))
    return state


def slice_and_chunk(cases: dict[str, RunSettings]) -> dict[str, Any]:
    results = {}
    for name, run in cases.items():
        state = trained(run)
        wide = whole(state)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exchange, "CHUNK_NUMBERS", 64)  # a few rows at a time
            sliced = slice_state(
                state, {field: torch.tensor(kept, dtype=torch.int64) for field, kept in OPEN.items()}
            )
            chunks = [(chunk.field, chunk.first_row, chunk.values) for chunk in sliced.sharded.chunks(TABLES)]
        results[name] = {
            "wide": wide,
            "sliced": whole(sliced),
            "tables": whole_tables(sliced),
            "chunks": chunks,
            "plan": sliced.sharded.plan,
        }
    return results


def slicing_cases() -> dict[str, RunSettings]:
    cases = {
        name: RunSettings.model_validate({"model": MODEL, "sharding": sharding})
        for name, sharding in KINDS.items()
    }
    base = {"orthogonality": {"form": "none"}}
    cases["adagrad mixed"] = settings(
        "dcnv2", sharding={"sharding_types": MIXED}, optimizer={"tables": "adagrad"}, **base
    )
    cases["adagrad turned"] = settings(
        "dcnv2", sharding={"sharding_types": TURNED}, optimizer={"tables": "adagrad"}, **base
    )
    rows = {"user": "row_wise", "gender": "data_parallel", "movie": "data_parallel"}
    cases["rowwise_adagrad"] = settings(
        "dcnv2", sharding={"sharding_types": rows}, optimizer={"tables": "rowwise_adagrad"}, **base
    )
    apart = {
        "sharding": {"sharding_types": MIXED | {"gender": "table_wise"}},
        "precision": {"tables": "float16"},
    }
    cases["float16"] = settings("dcnv2", optimizer={"tables": "adagrad"}, **apart, **base)
    return cases


@pytest.mark.parametrize("ranks", [2, 3])
def test_sliced_tables_and_state_are_the_kept_columns(ranks: int) -> None:
    results = run_on_ranks(ranks, slice_and_chunk, slicing_cases())
    for name, found in results[0].items():
        for key, after in found["sliced"].items():
            before, kept = found["wide"][key], torch.tensor(OPEN[key.rsplit("/", 1)[1]], dtype=torch.int64)
            assert not after.isnan().any(), (name, key)
            if after.dim() == 1 or "first_order" in key:
                assert torch.equal(after, before), (name, key)
            else:
                assert torch.equal(after[:, : len(kept)], before[:, kept]), (name, key)
                assert not after[:, len(kept) :].any(), (name, key)
        assert any(
            part.rank == ranks - 1 for placement in found["plan"].placements for part in placement.shards
        )
        rows: dict[str, list[torch.Tensor]] = {}
        for field, first, values in sorted(
            (chunk for result in results for chunk in result[name]["chunks"]), key=lambda chunk: chunk[:2]
        ):
            assert first == sum(len(piece) for piece in rows.setdefault(field, [])), (name, field)
            assert (
                values.dtype == (torch.float16 if name == "float16" else torch.float32)
                or found["plan"].groups[TABLES][field].splits_columns
            ), name
            rows[field].append(values.float())
        assert rows.keys() == {"user", "movie", "genres"}
        assert all(
            torch.equal(torch.cat(pieces), found["tables"][field]) for field, pieces in rows.items()
        ), name


def saved(path: Path, cases: dict[str, RunSettings]) -> dict[str, dict[str, torch.Tensor]]:
    results = {}
    for name, run in cases.items():
        state = trained(run)
        storage.save(path / name, state.tensors(), {"steps": state.optimizers.steps})
        results[name] = whole(state)
    return results


def loaded(path: Path, cases: dict[str, RunSettings]) -> dict[str, dict[str, torch.Tensor]]:
    results = {}
    for name, run in cases.items():
        state = open_supernet(run, FIELDS, torch.device("cpu"))
        state.optimizers.steps = storage.load(path / name, state.tensors())["steps"]
        results[name] = whole(state)
    return results


def checkpoint_cases(tables: dict[str, str], without_columns: dict[str, str]) -> dict[str, RunSettings]:
    without_copies = {
        field: "row_wise" if kind == "data_parallel" and FIELDS[field] > 9 else kind
        for field, kind in tables.items()
    }
    halves = {
        "sharding": {"sharding_types": without_copies | {"gender": "table_wise"}},
        "precision": {"tables": "float16"},
    }
    decoupled = {"application": "decoupled", "every": 2, "rows": 16}
    return {
        "adam": settings("dcnv2", sharding={"sharding_types": tables}),
        "adagrad": settings(
            "dcnv2",
            sharding={"sharding_types": tables},
            optimizer={"tables": "adagrad"},
            orthogonality=decoupled,
        ),
        "float16": settings("dcnv2", optimizer={"tables": "adagrad"}, orthogonality=decoupled, **halves),
        "rowwise_adagrad": settings(
            "dcnv2",
            sharding={"sharding_types": without_columns},
            optimizer={"tables": "rowwise_adagrad"},
            orthogonality=decoupled,
        ),
    }


def test_a_checkpoint_loads_under_another_plan_on_other_ranks(tmp_path: Path) -> None:
    """Every sharding type into every other, data-parallel too: written on 2 ranks, read on 3 and on 1."""
    before = run_on_ranks(
        2, saved, tmp_path, checkpoint_cases(MIXED, {"user": "row_wise", "gender": "data_parallel"})
    )[0]
    types = {
        name: entry["type"]
        for name, entry in json.loads((tmp_path / "float16" / "index.json").read_text())["tensors"].items()
    }
    assert (types["tables.ebc/user"], types["sum/tables.ebc/user"]) == ("float16", "float32")
    for ranks in (3, 1):
        after = run_on_ranks(
            ranks,
            loaded,
            tmp_path,
            checkpoint_cases(TURNED, {"movie": "data_parallel", "genres": "row_wise"}),
        )[0]
        for name, tensors in before.items():
            assert tensors.keys() == after[name].keys()
            assert all(torch.equal(values, after[name][key]) for key, values in tensors.items()), name


def round_trips(rows: int, dim: int, chunk_numbers: int) -> bool:
    """Moves shards of columns to shards of rows in another rank order, and back, with columns reversed."""
    ranks, rank = process_group.world_size(), process_group.rank()
    table = torch.arange(rows * dim, dtype=torch.float32).view(rows, dim)
    edges = [dim * number // ranks for number in range(ranks + 1)]
    by_column = tuple(
        TableShard(number, 0, rows, edges[number], edges[number + 1] - edges[number])
        for number in range(ranks)
    )
    by_row = even_blocks(0, rows, dim, ranks)
    here, block = table[:, edges[rank] : edges[rank + 1]], by_row[rank]
    lying, back = torch.full((block.rows, dim), torch.nan), torch.full_like(here, torch.nan)
    turned = torch.arange(dim).flip(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "CHUNK_NUMBERS", chunk_numbers)
        move(by_column, here, by_row, lying, turned, replicated=False, device=table.device)
        move(by_row, lying, by_column, back, turned, replicated=False, device=table.device)
    return torch.equal(lying, table[block.first_row :][: block.rows].flip(1)) and torch.equal(back, here)


@pytest.mark.parametrize(("rows", "dim", "chunk_numbers"), [(1, 1, 1), (7, 5, 3), (40, 2, 16), (13, 9, 1000)])
def test_a_round_trip_changes_no_number(rows: int, dim: int, chunk_numbers: int) -> None:
    assert all(run_on_ranks(3, round_trips, rows, dim, chunk_numbers))


def saved_in_pieces(path: Path, run: RunSettings) -> tuple[int, dict[str, torch.Tensor]]:
    with patch("ham_dist.distributed.planning.placement.PIECE_BYTES", 100):
        tensors = trained(run).tensors()
        state = trained(run)
        storage.save(path, state.tensors(), {"steps": state.optimizers.steps})
    pieces = [len(values.local_shards()) for values in tensors.values() if hasattr(values, "local_shards")]
    return sum(pieces), whole(state)


def loaded_in_pieces(path: Path, run: RunSettings) -> dict[str, torch.Tensor]:
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    with patch("ham_dist.distributed.planning.placement.PIECE_BYTES", 260):
        storage.load(path, state.tensors())
    return whole(state)


def test_a_table_is_written_in_pieces_and_read_in_others(tmp_path: Path) -> None:
    """Pieces of about 3 rows on 2 ranks; then of 8 rows, under another plan, on 3 ranks."""
    options = {"optimizer": {"tables": "adagrad"}, "orthogonality": {"form": "none"}}
    found = run_on_ranks(
        2,
        saved_in_pieces,
        tmp_path / "saved",
        settings("dcnv2", sharding={"sharding_types": MIXED}, **options),
    )
    assert sum(pieces for pieces, _ in found) > 60
    for after in run_on_ranks(
        3,
        loaded_in_pieces,
        tmp_path / "saved",
        settings("dcnv2", sharding={"sharding_types": TURNED}, **options),
    ):
        assert after.keys() == found[0][1].keys()
        assert all(torch.equal(values, after[key]) for key, values in found[0][1].items())
