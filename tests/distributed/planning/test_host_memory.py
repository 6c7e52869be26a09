"""Tables in the host memory of GPUs, planned without GPUs; and when caches are flushed, tested on CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ParameterSharding

from ham_dist.config.schema import OptimizerSettings, RunSettings, TablePrecision
from ham_dist.config.sharding import ShardingSettings
from ham_dist.distributed.planning.placement import Plan
from ham_dist.distributed.planning.planner import make_plan
from ham_dist.distributed.planning.request import PlanRequest
from ham_dist.distributed.planning.table_optimizers import (
    INDEX_BYTES,
    SLOT_BYTES,
    BytesHeld,
    Memory,
    table_optimizer_of,
)
from ham_dist.distributed.planning.topology import Topology, parse
from ham_dist.distributed.planning.traffic import costs_by_rank
from ham_dist.errors import BackendError, ConfigError, HamError, ShardingError
from ham_dist.training.loop import weight_step
from ham_dist.training.state import open_supernet
from tests.support.plain_model import FIELDS
from tests.support.planning import cpu, tables
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import local_batch, settings

V100 = parse("4xV100-16GB+256GB")
SIZES = [100_000_000, 1000, 60_000_000, 10, 1_000_000]
"""Rows of 64 columns: 25.6 and 15.4 GB, and small tables; tables may take 14 GB of each of 4 GPUs."""


def planned(
    topology: Topology,
    table_optimizer: str = "rowwise_adagrad",
    precision: TablePrecision = "float32",
    **sharding: Any,
) -> tuple[PlanRequest, Plan]:
    request = PlanRequest(
        ShardingSettings(**sharding),
        table_optimizer_of(OptimizerSettings(tables=table_optimizer)),
        topology,
        {"tables.ebc": tables(SIZES, width=64, precision=precision)},
        batch_size=2048,
    )
    return request, make_plan(request)


def device_load(request: PlanRequest, plan: Plan) -> list[int]:
    return [held.device for held in request.held(plan)]


def host_load(request: PlanRequest, plan: Plan) -> list[int]:
    return [held.host for held in request.held(plan)]


def cached(plan: Plan) -> list[str]:
    return [
        placement.table.field
        for placement in plan.placements
        if placement.memory.kernel == "fused_uvm_caching"
    ]


@pytest.mark.parametrize(
    ("sharding_type", "topology", "expected"),
    [
        ("table_wise", "4xV100-16GB", ["t0", "t2"]),
        ("table_wise", "4xV100-32GB", []),
        ("auto", "4xV100-16GB", []),  # TorchRec's planner cuts the largest
        ("auto", "2xV100-16GB", ["t0"]),
        ("row_wise", "4xV100-16GB", []),
    ],
)
def test_auto_caches_the_largest_tables_and_only_where_not_all_fit(
    sharding_type: str, topology: str, expected: list[str]
) -> None:
    small = {"t1": "table_wise", "t3": "table_wise"}
    request, plan = planned(
        parse(topology), sharding_type=sharding_type, sharding_types=small, compute_kernel="auto"
    )
    assert cached(plan) == expected
    assert max(device_load(request, plan)) <= request.room
    assert bool(sum(host_load(request, plan))) == bool(expected)


def test_what_auto_may_not_move_stays_on_the_device() -> None:
    _, plan = planned(
        parse("4xV100-16GB"),
        sharding_type="table_wise",
        compute_kernel="auto",
        compute_kernels={"t2": "fused_uvm", "t4": "device"},
        sharding_types={"t3": "data_parallel"},
    )
    assert {placement.table.field: placement.memory.kernel for placement in plan.placements} == {
        "t0": "fused_uvm_caching", "t1": "device", "t2": "fused_uvm", "t3": "device", "t4": "device",
    }  # fmt: skip
    assert not cached(planned(cpu(2), compute_kernel="auto")[1]), "on CPU all tables are in host memory"


def test_torchrec_gets_compute_kernel_and_load_factor() -> None:
    _, plan = planned(
        V100,
        sharding_type="table_wise",
        compute_kernels={"t0": "fused_uvm_caching", "t2": "fused_uvm"},
        cache_load_factor=0.1,
    )
    found: dict[str, ParameterSharding] = {
        placement.table.field: placement.sharding(torch.device("cuda"), 4) for placement in plan.placements
    }
    assert {field: sharding.compute_kernel for field, sharding in found.items()} == {
        "t0": EmbeddingComputeKernel.FUSED_UVM_CACHING.value,
        "t2": EmbeddingComputeKernel.FUSED_UVM.value,
        **dict.fromkeys(("t1", "t3", "t4"), EmbeddingComputeKernel.FUSED.value),
    }
    assert found["t0"].cache_params is not None
    assert found["t0"].cache_params.load_factor == 0.1
    assert found["t2"].cache_params is None


def test_bytes_on_the_device_and_on_the_host() -> None:
    """State with one number per row stays on the device; a cache takes slots for some rows, and an index."""
    table_optimizer = {
        name: table_optimizer_of(OptimizerSettings(tables=name)) for name in ("adagrad", "rowwise_adagrad")
    }
    cache = Memory("fused_uvm_caching", 0.25)
    assert table_optimizer["adagrad"].bytes_of(1000, 8000, fused=True, number_bytes=4) == BytesHeld(
        32_000, 32_000, 0
    )
    assert table_optimizer["adagrad"].bytes_of(
        1000, 8000, fused=True, number_bytes=4, memory=Memory("fused_uvm")
    ) == BytesHeld(0, 0, 64_000)
    assert table_optimizer["rowwise_adagrad"].bytes_of(
        1000, 8000, fused=True, number_bytes=4, memory=Memory("fused_uvm")
    ) == BytesHeld(0, 4_000, 32_000)
    assert table_optimizer["rowwise_adagrad"].bytes_of(
        1000, 8000, fused=True, number_bytes=2, memory=cache
    ) == BytesHeld(250 * (16 + SLOT_BYTES) + 1000 * INDEX_BYTES, 4_000, 16_000)
    request, plan = planned(V100, sharding_type="table_wise", compute_kernel="fused_uvm")
    costs = costs_by_rank(plan, request.table_optimizer, V100, 2048, {"t0": 3.0})
    assert [cost.host for cost in costs] == host_load(request, plan)
    assert [cost.tables + cost.training_state for cost in costs] == device_load(request, plan)
    assert sum(cost.host for cost in costs) == sum(SIZES) * 64 * 4


@pytest.mark.parametrize(
    ("table_optimizer", "precision", "read", "written"),
    [
        ("sgd", "float32", 4 + 4, 4),
        ("rowwise_adagrad", "float16", 2 + 2, 2),  # its state, one number per row, is on the device
        ("adagrad", "float16", 2 + (2 + 4), 2 + 4),
        ("fused_adam", "float32", 4 + (4 + 8), 4 + 8),
        ("lamb", "float32", 4 + 2 * (4 + 8), 4 + 8),
        ("partial_rowwise_adam", "float32", 4 + (4 + 4), 4 + 4),
    ],
)
def test_rows_and_their_state_come_from_the_host_and_go_back(
    table_optimizer: str, precision: TablePrecision, read: int, written: int
) -> None:
    request, plan = planned(
        parse("4xV100-16GB"),
        table_optimizer,
        precision,
        sharding_type="table_wise",
        compute_kernel="fused_uvm",
    )
    costs = costs_by_rank(plan, request.table_optimizer, V100, 2048, {"t0": 3.0})
    numbers = 2048 * (3 + 4) * 64  # pooling factor 3 for t0, 1 for the four others
    assert sum(cost.from_host for cost in costs) == numbers * read
    assert sum(cost.to_host for cost in costs) == numbers * written
    on_device = costs_by_rank(
        planned(parse("4xV100-80GB"), "sgd", sharding_type="table_wise")[1],
        request.table_optimizer,
        V100,
        2048,
        {},
    )
    assert not any(cost.from_host or cost.to_host for cost in on_device)


MISTAKES: list[tuple[str, TablePrecision, dict[str, Any], Topology, type[HamError], str]] = [
    (
        "adagrad",
        "float32",
        {"compute_kernel": "fused_uvm"},
        cpu(2),
        BackendError,
        r"sharding.compute_kernel = \"fused_uvm\".*exists only on GPU.*\n  Remove",
    ),
    (
        "adam",
        "float32",
        {"compute_kernels": {"t0": "fused_uvm_caching"}},
        V100,
        BackendError,
        r"'t0': this is a fused kernel.*\n.*\"rowwise_adagrad\"",
    ),
    (
        "sgd",
        "float32",
        {"compute_kernel": "fused_uvm", "sharding_type": "data_parallel"},
        V100,
        ShardingError,
        r"'t0': .* is data_parallel.*\n  1\. .*\n  2\. Keep the table on the device",
    ),
    (
        "sgd",
        "bfloat16",
        {"compute_kernel": "fused_uvm_caching"},
        V100,
        BackendError,
        r"does not support bfloat16.*\n.*\"float16\".*\"fused_uvm\"",
    ),
    (
        "sgd",
        "float32",
        {"sharding_type": "table_wise"},
        V100,
        ShardingError,
        r"\n  \d\. Store the largest tables in host memory.*: sharding.compute_kernel = \"auto\"",
    ),
    (
        "adam",
        "float32",
        {"sharding_type": "table_wise"},
        V100,
        ShardingError,
        r"in host memory, .*: optimizer.tables = \"rowwise_adagrad\" and sharding.compute_kernel",
    ),
    (
        "sgd",
        "float32",
        {},
        parse("1xV100-16GB"),
        ShardingError,
        r"planner finds no plan(.*\n)*  \d\. Store the largest tables .*: sharding.compute_kernel = \"auto\"",
    ),
    (
        "sgd",
        "float32",
        {"sharding_type": "table_wise", "compute_kernel": "fused_uvm"},
        parse("4xV100-16GB+64GB"),
        ShardingError,
        r"do not fit in host memory(.*\n)+  1.*\n  2.*\n  3",
    ),
]


@pytest.mark.parametrize(
    ("table_optimizer", "precision", "sharding", "topology", "error", "message"), MISTAKES
)
def test_settings_that_do_not_exist_or_fit_get_a_list_of_changes(
    table_optimizer: str,
    precision: TablePrecision,
    sharding: dict[str, Any],
    topology: Topology,
    error: type,
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        planned(topology, table_optimizer, precision, **sharding)


HOSTED: list[tuple[str, TablePrecision, dict[str, Any], str, list[str], list[str]]] = [
    # The largest table is in host memory; the one that does not fit on a device is t2.
    (
        "sgd",
        "float32",
        {"compute_kernels": {"t0": "fused_uvm"}},
        "4xV100-16GB",
        ['t2 = "row_wise"', 'sharding.compute_kernel = "auto"'],
        ["t0"],
    ),
    (
        "sgd",
        "float32",
        {"compute_kernels": {"t0": "fused_uvm", "t2": "device"}},
        "4xV100-16GB",
        ['{ t2 = "fused_uvm_caching" }'],
        ['= "auto"'],
    ),
    # Tables that `auto` may not move: with a kernel in the settings, data-parallel, and bfloat16 (no cache).
    (
        "sgd",
        "float32",
        {"compute_kernel": "auto", "compute_kernels": {"t0": "device"}},
        "4xV100-16GB",
        ['{ t0 = "fused_uvm_caching" }'],
        ['= "auto"'],
    ),
    (
        "sgd",
        "float32",
        {"compute_kernel": "auto", "sharding_types": {"t0": "data_parallel"}},
        "1xV100-16GB",
        ['t0 = "table_wise" } and sharding.compute_kernel = "auto"'],
        [],
    ),
    (
        "sgd",
        "bfloat16",
        {"compute_kernel": "auto"},
        "1xV100-16GB",
        ['in host memory: sharding.compute_kernels = { t0 = "fused_uvm" }.'],
        ['= "auto"', "fused_uvm_caching"],
    ),
    # A cache, and optimizer state with one number per row, that do not fit alone.
    (
        "sgd",
        "float32",
        {"compute_kernel": "auto", "cache_load_factor": 1.0},
        "1xV100-16GB",
        ["lower sharding.cache_load_factor", '{ t0 = "fused_uvm" }'],
        ['= "auto"'],
    ),
    (
        "rowwise_adagrad",
        "float32",
        {"compute_kernel": "fused_uvm"},
        "1xV100-0.4GB",
        ['optimizer.tables = "adagrad"'],
        ['= "auto"', "fused_uvm_caching"],
    ),
    # Host memory is too small: `auto` found no room on devices, and CPU processes have no other memory.
    (
        "sgd",
        "float32",
        {"compute_kernel": "auto"},
        "2xV100-16GB+32GB",
        ["in host memory", "Use more hosts"],
        ['= "auto"', '= "device"', "CPU"],
    ),
    (
        "sgd",
        "float32",
        {"compute_kernel": "fused_uvm"},
        "2xV100-16GB+32GB",
        ["in host memory", '{ t0 = "device" }, or sharding.compute_kernel = "auto"'],
        ["CPU"],
    ),
    (
        "adagrad",
        "float32",
        {"compute_kernel": "fused_uvm"},
        "2xV100-16GB+64GB",
        ['"rowwise_adagrad" stores 1 number per row; "adagrad" stores 1 per weight'],
        [],
    ),
]


@pytest.mark.parametrize(
    ("table_optimizer", "precision", "sharding", "topology", "expected", "not_expected"), HOSTED
)
def test_changes_name_the_table_that_does_not_fit_and_nothing_that_was_tried(
    table_optimizer: str,
    precision: TablePrecision,
    sharding: dict[str, Any],
    topology: str,
    expected: list[str],
    not_expected: list[str],
) -> None:
    with pytest.raises(ShardingError) as error:
        planned(parse(topology), table_optimizer, precision, **{"sharding_type": "table_wise"} | sharding)
    message = str(error.value)
    assert all(text in message for text in expected), message
    assert not any(text in message for text in not_expected), message


def test_torchrecs_planner_reports_host_memory_that_is_too_small() -> None:
    with pytest.raises(
        ShardingError,
        match=r"need 0 bytes on GPUs, .* and 41.\d\d GB in host memory\.\nEach of the 2 rank"
        r"(.*\n)*  \d\. Use more hosts",
    ) as error:
        planned(parse("2xV100-16GB+32GB"), "sgd", compute_kernel="fused_uvm")
    assert "CPU" not in str(error.value)


@pytest.mark.parametrize("table_optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("memory", ["fused_uvm", "fused_uvm_caching"])
def test_tables_in_host_memory_are_spread_over_ranks(table_optimizer: str, memory: str) -> None:
    """With sgd and adagrad a table in host memory takes no device memory; only host memory counts."""
    topology = parse("4xV100-32GB+256GB")
    request, plan = planned(topology, table_optimizer, sharding_type="table_wise", compute_kernel=memory)
    of_largest = request.table_optimizer.bytes_of(
        SIZES[0],
        SIZES[0] * 64,
        fused=True,
        number_bytes=4,
        memory=request.memory_of(tables(SIZES, width=64)[0]),
    ).host
    assert max(host_load(request, plan)) == of_largest, "the others share the other ranks"
    hosts = parse("2x2xV100-32GB+256GB")
    request, plan = planned(
        hosts,
        table_optimizer,
        sharding_type="table_row_wise",
        compute_kernel=memory,
        sharding_types={"t3": "table_wise"},
    )
    assert {part.rank // 2 for part in plan.groups["tables.ebc"]["t0"].shards} != {
        part.rank // 2 for part in plan.groups["tables.ebc"]["t2"].shards
    }


def test_auto_caches_no_more_tables_than_necessary() -> None:
    """One cached table is enough for the device, and two would be too much for the host."""
    request, plan = planned(
        parse("1xV100-32GB+40GB"), "sgd", sharding_type="table_wise", compute_kernel="auto"
    )
    assert cached(plan) == ["t0"]
    assert max(host_load(request, plan)) <= (request.host_room or 0)


def test_topologies_with_host_memory_by_name() -> None:
    assert parse("2x8xA100-80GB+1TB") == Topology("cuda", 16, 8, 80 * 10**9, 125 * 10**9)
    assert parse("8xA100-80GB").host_memory is None
    with pytest.raises(ShardingError, match=r"Remove \+1TB"):
        parse("4x24GB+1TB")


def test_a_compute_kernel_of_an_unknown_field_names_the_nearest() -> None:
    from ham_dist.distributed.planning.planner import require_known_fields

    with pytest.raises(
        ConfigError, match=r"sharding.compute_kernels.usr: the data has no such field. Did you mean user\?"
    ):
        require_known_fields(ShardingSettings(compute_kernels={"usr": "fused_uvm"}), ["user", "movie"])


def recorded(events: list[str], name: str, call: Callable[[], None]) -> Callable[[], None]:
    def calls() -> None:
        events.append(name)
        call()

    return calls


def cache_events(run: RunSettings) -> list[str]:
    """Returns what happens to the caches of a model in training and reading; on CPU, caches are simulated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "caches", True)
        state = open_supernet(run, FIELDS, torch.device("cpu"))
    events: list[str] = []
    (tables,) = (
        module
        for module in state.sharded.parallel.modules()
        if isinstance(module, ShardedEmbeddingBagCollection)
    )
    for lookup in tables._lookups:
        for name in ("flush", "purge"):
            setattr(lookup, name, recorded(events, name, getattr(lookup, name)))
    weight_step(state, local_batch(0))
    events.append("step")
    state.weights()
    state.weights()
    events.append("read")
    weight_step(state, local_batch(1))
    weight_step(state, local_batch(2))
    events.append("steps")
    assert state.sharded.local
    return events


def test_caches_are_flushed_before_tables_are_read_or_written() -> None:
    run = settings(
        "fm",
        optimizer={"tables": "adagrad"},
        orthogonality={"form": "none"},
        sharding={"sharding_type": "table_wise"},
    )
    for events in run_on_ranks(2, cache_events, run):
        assert events == ["step", "flush", "purge", "read", "steps", "flush", "purge"]
    decoupled = settings(
        "fm",
        optimizer={"tables": "adagrad"},
        orthogonality={"application": "decoupled", "every": 1},
        sharding={"sharding_type": "table_wise"},
    )
    for events in run_on_ranks(2, cache_events, decoupled):
        assert events == ["flush", "purge", "step", "read", "flush", "purge", "flush", "purge", "steps"], (
            "the regularizer writes after each step"
        )
