"""Memory and traffic of plans, compared with the bytes that are allocated and sent."""

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.cli.plan import most_numbers
from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.planning import topology
from ham_dist.distributed.planning.traffic import RankCost, costs_by_rank
from ham_dist.distributed.ranks import process_group
from ham_dist.embedding.tables import Table, stored_dim
from ham_dist.training.loop import weight_step
from ham_dist.training.state import open_supernet
from tests.support.plain_model import FIELDS
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import settings
from tests.support.sharding_types import MIXED

ROWS = 64


class Sent:
    """Bytes that this rank sends, by collective of torch.distributed.

    Integers of 8 bytes announce sizes and are left out.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ids = self.vectors = self.sums = 0
        all_to_all, scatter, gather, reduce = (
            dist.all_to_all_single,
            dist.reduce_scatter_tensor,
            dist.all_gather_into_tensor,
            dist.all_reduce,
        )
        ranks, rank = dist.get_world_size(), dist.get_rank()

        def counted_all_to_all(
            output: Any,
            input: Any,
            output_split_sizes: Any = None,
            input_split_sizes: Any = None,
            **options: Any,
        ) -> Any:
            own = input_split_sizes[rank] if input_split_sizes else input.numel() // ranks
            size = (input.numel() - own) * input.element_size()
            self.ids += size if input.dtype == torch.int32 else 0
            self.vectors += size if input.dtype == torch.float32 else 0
            return all_to_all(output, input, output_split_sizes, input_split_sizes, **options)

        def counted_scatter(output: Any, input: Any, *args: Any, **options: Any) -> Any:
            self.vectors += input.nbytes - output.nbytes
            return scatter(output, input, *args, **options)

        def counted_gather(output: Any, input: Any, *args: Any, **options: Any) -> Any:
            self.vectors += output.nbytes - input.nbytes
            return gather(output, input, *args, **options)

        def counted_reduce(values: Any, *args: Any, **options: Any) -> Any:
            self.sums += 2 * (ranks - 1) * values.nbytes // ranks
            return reduce(values, *args, **options)

        for names, counted in (
            (("all_to_all_single",), counted_all_to_all),
            (("reduce_scatter_tensor", "_reduce_scatter_base"), counted_scatter),
            (("all_gather_into_tensor", "_all_gather_base"), counted_gather),
            (("all_reduce",), counted_reduce),
        ):
            for name in names:
                patch.setattr(dist, name, counted)


def batch() -> Batch:
    """Returns ids in int32, as the reader does; `genres` has pooling factor 2."""
    generator = torch.Generator().manual_seed(process_group.rank())
    lengths = [
        torch.full((ROWS // process_group.world_size(),), 2 if field == "genres" else 1, dtype=torch.int32)
        for field in FIELDS
    ]
    ids = [
        torch.randint(rows, (int(count.sum()),), generator=generator, dtype=torch.int32)
        for rows, count in zip(FIELDS.values(), lengths, strict=True)
    ]
    rows = len(lengths[0])
    return Batch(
        KeyedJaggedTensor(list(FIELDS), torch.cat(ids), lengths=torch.cat(lengths), stride=rows),
        torch.zeros(rows),
        ROWS,
    )


def one_step(cases: dict[str, RunSettings]) -> dict[str, tuple[RankCost, Sent, int]]:
    """Returns the planned costs, the bytes sent, and the bytes of tables and optimizer state, by case."""
    found = {}
    for name, run in cases.items():
        state = open_supernet(run, FIELDS, torch.device("cpu"))
        weight_step(state, batch())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process_group, "SMALL_BYTES", 0)  # the plan assumes ring all-reduce
            sent = Sent(patch)
            weight_step(state, batch())
        dense = sum(parameter.numel() for parameter in state.interaction.parameters()) * 4
        sent.sums -= 2 * (process_group.world_size() - 1) * dense // process_group.world_size()
        planned = costs_by_rank(
            state.sharded.plan,
            state.sharded.table_optimizer,
            topology.here(torch.device("cpu")),
            ROWS,
            {"genres": 2.0},
        )
        held = sum(
            local.values.nbytes
            for key, _ in state.sharded.placements()
            if (local := state.sharded.local_table(key))
        )
        held += sum(
            values.nbytes for states in state.optimizers.table_states().values() for values in states.values()
        )
        for key, _ in state.sharded.placements():
            local = state.sharded.local_table(key)
            held += (
                local.parameter.grad.nbytes
                if local and local.parameter is not None and local.parameter.grad is not None
                else 0
            )
        found[name] = (planned[process_group.rank()], sent, held)
    return found


def test_planned_bytes_are_held_and_sent() -> None:
    """Vectors, sums and bytes held are exact; ids agree to 20 %: a small batch has no equal frequencies."""
    small = {"gender": "data_parallel", "genres": "table_wise"}  # too few rows for row_wise on 4 ranks
    kinds: dict[str, dict[str, Any]] = {
        kind: {"sharding_type": kind, "sharding_types": small}
        for kind in ("table_wise", "row_wise", "column_wise", "data_parallel")
    }
    kinds["mixed"] = {"sharding_types": MIXED}
    cases = {
        name: settings("fm", sharding=sharding, orthogonality={"form": "none"})
        for name, sharding in kinds.items()
    }
    adagrad = {"tables": "adagrad", "tables_learning_rate": 0.05}
    cases["fused"] = settings(
        "fm", sharding={"sharding_types": MIXED}, optimizer=adagrad, orthogonality={"form": "none"}
    )
    halves = {
        "precision": {"tables": "float16"},
        "sharding": {"sharding_types": MIXED | {"gender": "table_wise"}},
    }
    cases["float16"] = settings("fm", optimizer=adagrad, orthogonality={"form": "none"}, **halves)
    for of_rank in run_on_ranks(4, one_step, cases):
        for name, (planned, sent, held) in of_rank.items():
            assert planned.tables + planned.training_state == held, name
            assert planned.vectors_out + planned.vectors_in == sent.vectors, name
            assert planned.copies_out == pytest.approx(sent.sums, abs=4), name
            assert planned.ids_out == pytest.approx(sent.ids, rel=0.2), name


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=3),
    fused=st.booleans(),
    columns=st.integers(1, 27),
    in_bytes=st.booleans(),
)
def test_no_choice_within_a_target_holds_more_than_planned(
    sizes: list[tuple[int, int]], fused: bool, columns: int, in_bytes: bool
) -> None:
    tables = [
        Table(f"t{number}", rows, width, stored_dim(width, fused=fused), width)
        for number, (rows, width) in enumerate(sizes)
    ]
    target = Target(bytes=columns * 100) if in_bytes else Target(columns=columns)
    most = most_numbers(tables, target, 4 if fused else 1)
    for dims in itertools.product(*(range(table.embedding_dim + 1) for table in tables)):
        cost = sum(
            width * (table.num_embeddings * 4 if in_bytes else 1)
            for width, table in zip(dims, tables, strict=True)
        )
        if cost <= (columns * 100 if in_bytes else columns):
            assert (
                sum(
                    table.num_embeddings * stored_dim(width, fused=fused)
                    for width, table in zip(dims, tables, strict=True)
                )
                <= most
            )
