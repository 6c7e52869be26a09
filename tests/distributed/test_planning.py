"""Where tables go."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ham_dist.distributed.planning import sharding_plan, spread_tables
from ham_dist.embedding.tables import Table, embedding_bags

SIZES = st.lists(st.integers(1, 10_000), min_size=1, max_size=30)


def tables(sizes: list[int], prefix: str = "t") -> list[Table]:
    return [Table(f"{prefix}{number}", rows, 4, 4, 4) for number, rows in enumerate(sizes)]


@given(sizes=SIZES, more=SIZES, ranks=st.integers(1, 8))
def test_no_rank_holds_more_than_a_fair_share_and_one_table(sizes: list[int], more: list[int], ranks: int) -> None:
    groups = {"a": tables(sizes), "b": tables(more, "u")}
    owners = spread_tables(groups, ranks)
    load = [0] * ranks
    for path, group in groups.items():
        assert owners[path].keys() == {table.field for table in group}
        for table in group:
            load[owners[path][table.field]] += table.rows
    assert max(load) <= sum(load) / ranks + max(sizes + more)


def test_a_table_lies_on_a_device_that_its_host_has() -> None:
    """16 ranks on two hosts of 8 GPUs: rank 14 is GPU 6 of the second host."""
    group = tables([10] * 16)
    plan = sharding_plan(
        {"ebc": embedding_bags(group)},
        {"ebc": {table.field: number for number, table in enumerate(group)}},
        fused=True,
        device=torch.device("cuda"),
        ranks=16,
        ranks_of_host=8,
    )
    placements = [str(parameter.sharding_spec.shards[0].placement) for parameter in plan.plan["ebc"].values()]
    assert placements == [f"rank:{rank}/cuda:{rank % 8}" for rank in range(16)]
