"""Where tables go, and what is said where they cannot."""

import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ham_dist.config.schema import OptimizerSettings, TablePrecision
from ham_dist.config.sharding import ShardingSettings
from ham_dist.distributed.planning.by_size import LARGE_BYTES
from ham_dist.distributed.planning.placement import Plan
from ham_dist.distributed.planning.planner import bytes_held, make_plan, require_known_fields
from ham_dist.distributed.planning.request import PlanRequest
from ham_dist.distributed.planning.table_optimizers import table_optimizer_of
from ham_dist.distributed.planning.topology import Topology, parse
from ham_dist.embedding.tables import Table, stored_dim
from ham_dist.errors import BackendError, ConfigError, HamError, ShardingError
from tests.support.planning import PLENTY, cpu, tables

SIZES = st.lists(st.integers(1, 10_000), min_size=1, max_size=30)


def plan(
    groups: dict[str, list[Table]], topology: Topology, table_optimizer: str = "adam", **sharding: Any
) -> Plan:
    settings = OptimizerSettings(tables=table_optimizer)
    return make_plan(
        PlanRequest(ShardingSettings(**sharding), table_optimizer_of(settings), topology, groups, 2048)
    )


@given(sizes=SIZES, more=SIZES, ranks=st.integers(1, 8))
def test_by_size_no_rank_holds_more_than_a_fair_share_and_one_table(
    sizes: list[int], more: list[int], ranks: int
) -> None:
    groups = {"a": tables(sizes), "b": tables(more, "u")}
    placed = plan(groups, cpu(ranks))
    assert {path: list(group) for path, group in placed.groups.items()} == {
        path: [table.field for table in group] for path, group in groups.items()
    }
    assert {placement.sharding_type for placement in placed.placements} == {"table_wise"}
    load = [sum(placement.numbers_of(rank) for placement in placed.placements) for rank in range(ranks)]
    assert max(load) <= sum(load) / ranks + 4 * max(sizes + more)


@given(
    kind=st.sampled_from(["table_wise", "row_wise", "column_wise", "table_row_wise", "grid"]),
    rows=st.integers(80, 500),
    width=st.integers(1, 40),
    hosts=st.integers(1, 3),
    ranks_of_host=st.integers(1, 3),
    table_optimizer=st.sampled_from(["adam", "adagrad"]),
)
def test_parts_cover_a_table_once_with_one_part_a_rank(
    kind: str, rows: int, width: int, hosts: int, ranks_of_host: int, table_optimizer: str
) -> None:
    table = Table("t", rows, width, stored_dim(width, fused=table_optimizer == "adagrad"), width)
    (placement,) = plan(
        {"a": [table]}, cpu(hosts * ranks_of_host, ranks_of_host), table_optimizer, sharding_type=kind
    ).placements
    covered = torch.zeros(rows, table.stored_dim, dtype=torch.int64)
    for part in placement.shards:
        covered[
            part.first_row : part.first_row + part.rows, part.first_column : part.first_column + part.columns
        ] += 1
    assert bool((covered == 1).all())
    assert len({part.rank for part in placement.shards}) == len(placement.shards)
    assert placement.sharding_type == kind
    assert all(
        part.rows > 0 and (table_optimizer == "adam" or part.columns % 4 == 0) for part in placement.shards
    )


@given(rows=st.integers(1, 50), start=st.integers(0, 60), length=st.integers(0, 60), first=st.integers(0, 30))
def test_a_part_within_rows_is_what_both_have(rows: int, start: int, length: int, first: int) -> None:
    from ham_dist.distributed.planning.placement import TableShard

    within = TableShard(0, first, rows, 0, 4).within(start, start + length)
    both = set(range(first, first + rows)) & set(range(start, start + length))
    assert set(range(within.first_row, within.first_row + within.rows)) == both


def test_on_cpu_a_table_too_large_for_one_rank_goes_row_wise() -> None:
    rows = LARGE_BYTES // 4 // 4  # with Adam's gradient and two moments four times LARGE_BYTES
    kinds = [
        placement.sharding_type for placement in plan({"a": tables([rows, 1000, 10])}, cpu(4)).placements
    ]
    assert kinds == ["row_wise", "table_wise", "table_wise"]
    assert [
        placement.sharding_type
        for placement in plan({"a": tables([rows, rows, rows, rows])}, cpu(4)).placements
    ] == ["table_wise"] * 4
    # 16 bytes a row and 4 of its like in all: 64 KB do not fit into 40, but in two halves they do.
    small = plan({"a": tables([1000, 10])}, cpu(2, memory=40_000), memory_share=1.0)
    assert [placement.sharding_type for placement in small.placements] == ["row_wise", "table_wise"]


def test_a_table_lies_on_a_device_that_its_host_has() -> None:
    """16 ranks on two hosts of 8 GPUs: rank 14 is GPU 6 of the second host."""
    placed = plan({"ebc": tables([10] * 16)}, Topology("cuda", 16, 8, PLENTY), sharding_type="table_wise")
    shardings = [placement.sharding(torch.device("cuda"), 8) for placement in placed.placements]
    placements = sorted(str(sharding.sharding_spec.shards[0].placement) for sharding in shardings)
    assert placements == sorted(f"rank:{rank}/cuda:{rank % 8}" for rank in range(16))


@pytest.mark.parametrize("table_optimizer", ["adam", "rowwise_adagrad", "fused_adam"])
def test_on_gpu_torchrecs_planner_decides_within_memory(table_optimizer: str) -> None:
    """30 GB of weights: a table of 16 GB does not fit on a GPU of 16 GB, so it is cut; small ones are not."""
    groups = {
        "tables.ebc": tables([250_000_000 // 4, 100_000, 50], width=64),
        "first_order_tables": tables([250_000_000 // 4, 100_000, 50]),
    }
    topology = Topology("cuda", 8, 8, 16 * 10**9)
    placed = plan(groups, topology, table_optimizer)
    largest = placed.groups["tables.ebc"]["t0"]
    assert len(largest.shards) > 1
    assert largest.sharding_type != "data_parallel"
    assert (
        sum(part.rows * part.columns for part in largest.shards)
        == largest.table.num_embeddings * largest.table.stored_dim
    )
    assert (
        max(
            held.device
            for held in bytes_held(placed, table_optimizer_of(OptimizerSettings(tables=table_optimizer)), 8)
        )
        < 0.85 * topology.memory
    )
    for placement in placed.placements:
        assert len({part.rank for part in placement.shards}) == len(placement.shards)
        assert not (table_optimizer == "rowwise_adagrad" and placement.splits_columns)
        assert not (table_optimizer == "fused_adam" and placement.replicated)
    held = plan(groups, topology, table_optimizer, sharding_types={"t1": "row_wise", "t0": "row_wise"})
    assert [held.groups["tables.ebc"][field].sharding_type for field in ("t0", "t1")] == [
        "row_wise",
        "row_wise",
    ]


@pytest.mark.parametrize(("rows", "ranks"), [(5, 4), (50, 41), (600, 64)])
def test_fewer_ranks_are_named_of_which_every_number_will_do(rows: int, ranks: int) -> None:
    table = {"tables.ebc": [Table("t", rows, 4, 4, 4)]}
    with pytest.raises(ShardingError) as caught:
        plan(table, cpu(ranks), "sgd", sharding_type="row_wise")
    enough = int(re.findall(r"Use fewer ranks: at most (\d+)", str(caught.value))[0])
    for count in range(2, enough + 1):
        assert plan(table, cpu(count), "sgd", sharding_type="row_wise").groups["tables.ebc"]["t"].spreads_rows
    with pytest.raises(ShardingError):
        plan(table, cpu(enough + 1), "sgd", sharding_type="row_wise")


GPUS = Topology("cuda", 2, 2, 100_000)
MISTAKES: list[tuple[str, dict[str, Any], Topology, type[HamError], str]] = [
    (
        "adam",
        {},
        cpu(2, memory=1000),
        ShardingError,
        r"do not fit. Rank \d of 2(.*\n)+  1\. Use smaller embeddings.*\n  2\. Use more ranks: \d+",
    ),
    (
        "adam",
        {"sharding_type": "table_wise"},
        cpu(2, memory=1000),
        ShardingError,
        r"  2\. Spread table 't0' over all ranks: .*t0 = \"row_wise\"",
    ),
    (
        "adam",
        {},
        GPUS,
        ShardingError,
        r"planner finds no plan(.*\n)+  1\. Use smaller.*\n  2\. Use more ranks: \d+.*\n"
        r"  3\. Use a table optimizer",
    ),
    (
        "sgd",
        {"sharding_type": "row_wise"},
        cpu(4),
        ShardingError,
        r"table 't1': 5 rows on 4 ranks; blocks of 2 rows .*\n(  table 't\d.*\n)*"
        r"  1\. Use another sharding type.*t1 = \"table_wise\".*\n  2\. Use fewer",
    ),
    (
        "rowwise_adagrad",
        {"sharding_types": {"t1": "column_wise"}},
        cpu(2),
        ShardingError,
        r"'t1' is column_wise(.*\n)+  1\. .*row_wise.*\n  2\. .*adagrad",
    ),
    (
        "fused_adam",
        {},
        cpu(1),
        BackendError,
        r"exists only on cuda, and this run is on cpu.\n.*optimizer.tables = \"adam\"",
    ),
    ("partial_rowwise_adam", {}, cpu(1), BackendError, r"optimizer.tables = \"rowwise_adagrad\""),
    (
        "lamb",
        {"sharding_type": "data_parallel"},
        GPUS,
        ShardingError,
        r"is data_parallel, .*\n  1\. Use another sharding type.*\n  2\. Use another table optimizer",
    ),
]


@pytest.mark.parametrize(("table_optimizer", "sharding", "topology", "kind", "message"), MISTAKES)
def test_a_plan_that_cannot_be_made_lists_what_to_change(
    table_optimizer: str, sharding: dict[str, Any], topology: Topology, kind: type, message: str
) -> None:
    with pytest.raises(kind, match=message):
        plan({"tables.ebc": tables([10_000, 5])}, topology, table_optimizer, **sharding)


def test_more_ranks_are_not_proposed_for_copies_that_no_rank_has_room_for() -> None:
    """Each copy alone would fit; more ranks are proposed only for tables that are not copied."""
    copies = {"t0": "data_parallel", "t1": "data_parallel"}
    with pytest.raises(ShardingError, match=r't0 = "row_wise"') as error:
        plan(
            {"tables.ebc": tables([10_000, 9_000, 5])},
            cpu(2, memory=1_400_000),
            "adam",
            sharding_types=copies,
        )
    assert "more ranks" not in str(error.value)
    with pytest.raises(ShardingError, match="Use more ranks: 4 or more"):
        plan(
            {"tables.ebc": tables([10_000, 9_000, 20_000, 20_000])},
            cpu(2, memory=2_200_000),
            "adam",
            sharding_types=copies,
        )


HALVES: list[tuple[TablePrecision, str, dict[str, Any], Topology, type[HamError], str]] = [
    (
        "float16",
        "adam",
        {},
        cpu(1),
        BackendError,
        r"would store gradients and moments in float16(.*\n)+.*\"rowwise_adagrad\" or \"adagrad\"",
    ),
    ("bfloat16", "adam", {}, GPUS, BackendError, r"moments in bfloat16(.*\n)+.*\"fused_adam\""),
    (
        "bfloat16",
        "adagrad",
        {},
        cpu(1),
        BackendError,
        r"exist only on cuda.*\n.*precision.tables = \"float16\"",
    ),
    (
        "float16",
        "sgd",
        {"sharding_types": {"t1": "data_parallel"}},
        cpu(2),
        ShardingError,
        r"'t1' is data_parallel(.*\n)+  1\. .*table_wise.*\n  2\. .*float32",
    ),
]


@pytest.mark.parametrize(("precision", "table_optimizer", "sharding", "topology", "kind", "message"), HALVES)
def test_tables_of_half_the_bytes_are_refused_where_no_kernel_has_them(
    precision: TablePrecision,
    table_optimizer: str,
    sharding: dict[str, Any],
    topology: Topology,
    kind: type,
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        plan({"tables.ebc": tables([10_000, 5], precision=precision)}, topology, table_optimizer, **sharding)


@pytest.mark.parametrize("table_optimizer", ["adagrad", "rowwise_adagrad", "fused_adam"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_the_bytes_fit_where_the_whole_do_not(table_optimizer: str, precision: TablePrecision) -> None:
    """Four tables of 2 bytes per weight, and 4 per weight for each optimizer state; float32 does not fit."""
    sizes, state = [10**7] * 4, {"adagrad": 4, "rowwise_adagrad": 0, "fused_adam": 8}[table_optimizer]
    topology = Topology("cuda", 2, 2, int(2 * 10**7 * 64 * (2 + state + 1) / 0.85))
    with pytest.raises(ShardingError, match=r'precision.tables = "float16"'):
        plan({"tables.ebc": tables(sizes, width=64)}, topology, table_optimizer)
    placed = plan({"tables.ebc": tables(sizes, width=64, precision=precision)}, topology, table_optimizer)
    assert (
        max(
            held.device
            for held in bytes_held(placed, table_optimizer_of(OptimizerSettings(tables=table_optimizer)), 2)
        )
        < 0.85 * topology.memory
    )
    assert not any(placement.replicated for placement in placed.placements)


def test_a_sharding_type_of_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"sharding.sharding_types.usr: the data has no such field. Did you mean user\?"
    ):
        require_known_fields(ShardingSettings(sharding_types={"usr": "row_wise"}), ["user", "movie"])


def test_topologies_by_name() -> None:
    assert parse("8xA100-80GB") == Topology("cuda", 8, 8, 80 * 10**9)
    assert parse("4x8xV100-16GB") == Topology("cuda", 32, 8, 16 * 10**9)
    assert parse("2x1.5TB") == Topology("cpu", 2, 2, 1_500 * 10**9)
    for text, number in itertools.product(
        ["8A100-80GB", "xA100-80GB", "8x-80GB", "8xA100", "0xA100-80GB", "2x0GB"], [0]
    ):
        with pytest.raises(ShardingError, match=rf"--topology {text}: expected \[HOSTSx.*\n.*8xA100-80GB"):
            parse(text[number:])


def test_the_sample_in_the_docs_is_what_a_run_has_by_default() -> None:
    text = (Path(__file__).parents[3] / "docs" / "sharding.md").read_text(encoding="utf-8")
    sample = tomllib.loads(text.split("```toml\n")[1].split("```")[0])["sharding"]
    assert (
        ShardingSettings.model_validate(sample | {"sharding_types": {}, "compute_kernels": {}})
        == ShardingSettings()
    )
    assert set(sample) == set(ShardingSettings.model_fields)
