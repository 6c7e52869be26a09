"""The output of --plan-only on the sliced model, which does not exist yet, and on host memory of GPUs."""

import io
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ham_dist.cli.plan import describe_plan, sliced_held
from ham_dist.config.load import load_run
from ham_dist.config.schema import OptimizerSettings
from ham_dist.config.sharding import ShardingSettings
from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.config.target import Target
from ham_dist.data.synthetic.write import generate
from ham_dist.distributed.planning.request import PlanRequest
from ham_dist.distributed.planning.table_optimizers import Memory, table_optimizer_of
from ham_dist.distributed.planning.topology import parse
from ham_dist.distributed.sharding.model import FIRST_ORDER, TABLES
from ham_dist.embedding.tables import Table, stored_dim
from ham_dist.errors import DataError, ShardingError, TargetError

ON_HOST = (
    "optimizer.tables=sgd",
    "orthogonality.application=decoupled",
    "sharding.sharding_type=table_wise",
    "sharding.compute_kernel=fused_uvm",
)


def printed(*sets: str, topology: str = "1xV100-16GB+256GB") -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=200)
    for part in describe_plan(load_run(None, list(sets)), topology):
        console.print(part, soft_wrap=isinstance(part, str))
    return stream.getvalue()


def test_a_sliced_model_on_the_host_uses_no_device_memory() -> None:
    text = printed(*ON_HOST)
    (tables,) = re.findall(r"^ +table_wise +\d+ +([\d.]+ kB)", text, re.MULTILINE)
    assert re.search(rf"^ +0 +{re.escape(tables)} +[\d.]+ [kM]B +[\d.]+ [kM]B *$", text, re.MULTILINE), (
        "the only rank has all tables in host memory"
    )
    assert re.search(r"^ +0 +0 bytes +0 bytes ", text, re.MULTILINE)
    device, on_host = re.findall(
        r"^ +columns-16 .* {2}(\d[\d.]* (?:bytes|kB)) +(\d[\d.]* kB) *$", text, re.MULTILINE
    )[0]
    assert device == "0 bytes"
    assert float(on_host.split()[0]) > float(tables.split()[0]), "the supernet's and its own"


def test_a_sharding_type_has_the_bytes_of_its_tables_without_training_state() -> None:
    def bytes_of_type(*sets: str) -> list[str]:
        return re.findall(r"^ +table_wise +\d+ +([\d.]+ kB)", printed(*sets), re.MULTILINE)

    wide = bytes_of_type(*ON_HOST)
    assert len(wide) == 1
    assert (
        bytes_of_type(*ON_HOST, "sharding.compute_kernel=fused_uvm_caching")
        == bytes_of_type(*ON_HOST, "optimizer.tables=adagrad")
        == wide
    )


def test_flushed_caches_are_a_warning_before_a_run() -> None:
    cached = (*ON_HOST, "sharding.compute_kernel=fused_uvm_caching")
    assert "every orthogonality.every = 20 steps" in printed(*cached, "orthogonality.every=20")
    assert "warning" not in printed(*ON_HOST)
    assert "warning" not in printed(*cached, "orthogonality.form=none")


@pytest.mark.parametrize("target", ["{ columns = 1000 }", "{ bytes = 1 }"])
def test_a_target_that_the_run_refuses_gets_no_plan(target: str) -> None:
    with pytest.raises(TargetError, match=r"search\.targets"):
        printed(f"search.targets=[{target}]")


def test_a_batch_that_the_run_refuses_gets_no_plan(tmp_path: Path) -> None:
    generate(SyntheticSettings(rows=1000), tmp_path / "data")
    path = f"data.path={tmp_path / 'data'}"
    assert "columns-16" in printed(path, "data.batch_size=64")
    with pytest.raises(DataError, match="batch_size = 2048"):
        printed(path)
    with pytest.raises(DataError, match="fewer rows than the 8 ranks"):
        printed(path, "data.batch_size=64", "data.evaluation_batch_size=4", topology="8x16GB")


def test_a_plan_for_many_ranks_is_made_or_refused_at_once() -> None:
    assert "4000 x cpu" in printed(topology="4000x16GB")
    with pytest.raises(ShardingError, match=r"800,000 ranks, expected at most"):
        printed(topology="100000x8x16GB")


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 6)), min_size=1, max_size=3),
    table_optimizer=st.sampled_from(["sgd", "adagrad", "rowwise_adagrad"]),
    memory=st.sampled_from(["device", "fused_uvm", "auto"]),
    second=st.sampled_from([None, "device", "fused_uvm"]),
    columns=st.integers(1, 18),
)
def test_no_choice_of_columns_exceeds_the_printed_bounds(
    sizes: list[tuple[int, int]], table_optimizer: str, memory: Any, second: Any, columns: int
) -> None:
    """Whichever columns the search keeps, and whichever tables `auto` caches."""
    settings = ShardingSettings(
        compute_kernel=memory, compute_kernels={} if second is None else {"t1": second}, cache_load_factor=1.0
    )
    tables = [
        Table(f"t{number}", rows, width, stored_dim(width, fused=True), width)
        for number, (rows, width) in enumerate(sizes)
    ]
    groups = {
        TABLES: tables,
        FIRST_ORDER: [Table(table.field, table.num_embeddings, 1, 4, 1) for table in tables],
    }
    request = PlanRequest(
        settings,
        table_optimizer_of(OptimizerSettings(tables=table_optimizer)),
        parse("1xV100-16GB"),
        groups,
        batch_size=2048,
    )
    most = sliced_held(request, Target(columns=columns), fused=True)
    movable = request.movable()
    places = [
        [request.memory_of(table), *([Memory("fused_uvm_caching", 1.0)] if table.field in movable else [])]
        for table in tables
    ]
    for dims in itertools.product(*(range(table.embedding_dim + 1) for table in tables)):
        if sum(dims) <= columns:
            stored = [stored_dim(width, fused=True) for width in dims]
            for chosen in itertools.product(*places):
                held = [
                    request.table_optimizer.bytes_of(
                        table.num_embeddings,
                        table.num_embeddings * columns_of,
                        fused=True,
                        number_bytes=4,
                        memory=place,
                    )
                    for table, wide, place in zip(tables, stored, chosen, strict=True)
                    for columns_of in (wide, 4)
                    if columns_of
                ]
                assert sum(of_table.device for of_table in held) <= most.device
                assert sum(of_table.host for of_table in held) <= most.host


@pytest.mark.parametrize("memory", ["fused_uvm", "auto"])
def test_tables_that_may_be_on_the_host_are_counted_there(memory: str) -> None:
    assert "in its host memory at most" in printed(*ON_HOST, f"sharding.compute_kernel={memory}")
    assert "in its host memory at most" not in printed(*ON_HOST, "sharding.compute_kernel=device")
