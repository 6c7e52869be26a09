"""Whole runs with several sharding types give the results of table_wise or unsharded runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ham_dist.config.load import DEMO, load_run
from ham_dist.config.schema import RunSettings
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.model import TABLES
from ham_dist.errors import HamError
from ham_dist.export.bundle import open_bundle
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.writer import Description, write_bundle
from ham_dist.run import run_stages
from ham_dist.training.state import open_supernet
from tests.support.ranks import run_on_ranks
from tests.support.small_run import small_run
from tests.support.whole_runs import TIMES, metrics, result

SHORT: dict[str, dict[str, Any]] = {"pretrain": {"max_epochs": 2}, "retrain": {"max_epochs": 2}}
EXACT = {"field_0": "row_wise", "field_1": "column_wise", "field_2": "table_wise", "field_3": "column_wise"}
COPIED = {
    "field_0": "column_wise",
    "field_1": "data_parallel",
    "field_2": "row_wise",
    "field_3": "table_wise",
}


def do_run(settings: RunSettings, folder: Path) -> None:
    torch.set_num_threads(1)
    run_stages(settings, folder, resume=False)


def test_in_float64_rows_and_columns_apart_make_the_same_model_bit_for_bit(tmp_path: Path) -> None:
    """The results are those of table_wise on as many ranks, because the arithmetic is the same.

    That holds without the regularizer, whose products are sums over the rows of each rank, and with shards of
    16 n
    numbers: torch's fused Adam updates the last few numbers of a shard with scalar code, which in rare cases
    rounds differently (seen: 5e-10).
    """
    synthetic = {**small_run().data.synthetic.model_dump(), "rows": 4_000, "num_embeddings": (96, 48, 48, 96)}
    data = {**small_run().data.model_dump(), "synthetic": synthetic}
    base: dict[str, Any] = {
        **SHORT,
        "data": data,
        "precision": {"dense": "float64"},
        "orthogonality": {"form": "none"},
    }
    run_on_ranks(3, do_run, small_run(**base), tmp_path / "whole")
    run_on_ranks(3, do_run, small_run(**base, sharding={"sharding_types": EXACT}), tmp_path / "apart")
    kinds = {
        entry["table"]: entry["sharding_type"]
        for entry in json.loads((tmp_path / "apart" / "plan.json").read_text())["supernet"]
    }
    assert kinds == EXACT
    assert result(tmp_path / "apart") == result(tmp_path / "whole")
    assert metrics(tmp_path / "apart") == metrics(tmp_path / "whole")
    tables = [open_bundle(tmp_path / run / "bundle").tables() for run in ("whole", "apart")]
    assert tables[0].keys() == tables[1].keys()
    assert all(torch.equal(table, tables[1][field]) for field, table in tables[0].items())
    dense = [(tmp_path / run / "bundle" / "dense.safetensors").read_bytes() for run in ("whole", "apart")]
    assert dense[0] == dense[1]


def test_eight_ranks_can_make_the_demo_run(tmp_path: Path) -> None:
    """README.md starts it on 8 ranks; the tests of its commands start 2."""
    short = ["data.synthetic.rows=4000", "pretrain.max_epochs=1", "search.epochs=1", "retrain.max_epochs=1"]
    run_on_ranks(8, do_run, load_run(DEMO, short), tmp_path / "run")
    done = result(tmp_path / "run")
    assert done["world_size"] == 8
    assert sum(done["kept_columns"].values()) == done["target"]["columns"]


def test_with_copies_and_the_decoupled_regularizer_ranks_pretrain_alike(tmp_path: Path) -> None:
    """Metrics agree to 1e-5 until the search.

    A copy's gradient is a float32 sum over the ranks, and so is the product with a Gram matrix.
    """
    base: dict[str, Any] = {**SHORT, "orthogonality": {"application": "decoupled", "rows": 16, "weight": 0.1}}
    do_run(small_run(**base), tmp_path / "one")
    run_on_ranks(2, do_run, small_run(**base, sharding={"sharding_types": COPIED}), tmp_path / "two")
    assert sum(result(tmp_path / "two")["kept_columns"].values()) == 6
    for ours, theirs in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=False):
        if theirs["stage"] == "pretrain":
            names = theirs.keys() - TIMES - {"stage", "time"}
            assert {name: ours[name] for name in names} == pytest.approx(
                {name: theirs[name] for name in names}, abs=1e-5, rel=1e-5
            )


def refused(settings: RunSettings, folder: Path) -> str:
    try:
        run_stages(settings, folder, resume=False)
    except HamError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_a_plan_that_cannot_be_made_ends_all_ranks_together(tmp_path: Path) -> None:
    settings = small_run(sharding={"memory_share": 1e-9})
    first, second = run_on_ranks(2, refused, settings, tmp_path / "run")
    assert first.startswith("ShardingError: sharding: ")
    assert "1. Use smaller embeddings" in first
    assert "rank 0: sharding: " in second
    assert not (tmp_path / "run" / "checkpoints").exists()


def full_disk(folder: Path) -> str:
    """Exports column-wise tables, whose chunks all ranks make together. Rank 1 cannot write its first."""
    state = open_supernet(
        small_run(sharding={"sharding_type": "column_wise"}), {"user": 60, "movie": 40}, torch.device("cpu")
    )
    fields = [
        FieldEntry(name=table.field, num_embeddings=table.num_embeddings, embedding_dim=table.embedding_dim)
        for table in state.sharded.tables
    ]
    with pytest.MonkeyPatch.context() as patch:
        if process_group.rank() == 1:
            patch.setattr(
                Path, "open", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )
        try:
            write_bundle(
                folder / "bundle", Description(fields, None), chunks=state.sharded.chunks(TABLES), dense={}
            )
        except HamError as error:
            return str(error)
    return "no error"


def test_a_rank_that_cannot_write_does_not_keep_those_that_join_columns_waiting(tmp_path: Path) -> None:
    for message in run_on_ranks(2, full_disk, tmp_path):
        assert "No space left on device" in message
    assert not list(tmp_path.iterdir())
