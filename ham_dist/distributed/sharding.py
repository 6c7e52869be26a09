"""A CTR model with its tables spread over the ranks, and each rank's view of its own part of them.

C rows and d columns of one table; a rank holds some rows of it, all columns
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.comm_ops import set_gradient_division
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel

from ham_dist.distributed import process_group
from ham_dist.distributed.batch_norm import synchronize_batch_norm
from ham_dist.distributed.planning import describe, sharding_plan, spread_tables
from ham_dist.embedding.mask import ColumnMask
from ham_dist.embedding.tables import Table, TableChunk

TABLES, FIRST_ORDER = "tables.ebc", "first_order_tables"
"""Where a CTRModel keeps its tables under search, and its first-order tables."""

START_ROWS = 65_536
"""Rows that are started from one seed; fixed, so that a table's start does not depend on how it is spread."""

CHUNK_NUMBERS = 1 << 22
"""Numbers in one piece of a table that is streamed out."""


@dataclass(frozen=True)
class FusedRule:
    """Optimizer that the fused kernels apply inside the backward pass."""

    kind: type[torch.optim.Optimizer]
    options: Mapping[str, float]


@dataclass(frozen=True)
class LocalTable:
    """This rank's part of one table.

    table:     what it is a part of.
    first_row: number of its first row in the whole table.
    values:    (rows here, stored width); the kernel's own memory, so writing to it moves the table.
    parameter: what the dense kernel trains, with `.grad`; None under a fused kernel.
    """

    table: Table
    first_row: int
    values: torch.Tensor
    parameter: nn.Parameter | None

    @property
    def columns(self) -> torch.Tensor:
        """(rows here, width): the columns in use, without padding; a view."""
        return self.values[:, : self.table.width]


class ShardedModel:
    """A model placed on the ranks.

    model:       the model itself; calling it bypasses DDP, as steps on alpha and evaluation need.
    parallel:    the same under DistributedModelParallel, for steps on the weights.
    mask:        over the columns of the tables under search.
    tables:      the tables under search; first_order_tables: those of width 1 beside them, if any.
    local:       this rank's parts of the tables under search, by table name.
    first_order: likewise of the first-order tables.
    owners:      the rank of each table, by place in the model and table name.
    plan:        who holds what, as plain data.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Mapping[str, Sequence[Table]],
        mask: ColumnMask,
        *,
        device: torch.device,
        fused: FusedRule | None,
        owners: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        """Shard `model`, whose tables have no memory yet.

        groups: tables by the place in `model` of the EmbeddingBagCollection that they are: TABLES, and FIRST_ORDER where there are such.
        fused:  what the kernels apply inside the backward pass; None gives every table a gradient instead.
        owners: the rank of each table; None spreads them by size.
        """
        self.device = device
        self.fused = fused is not None
        self.mask = mask
        self.tables = tuple(groups[TABLES])
        self.first_order_tables = tuple(groups.get(FIRST_ORDER, ()))
        bags = {path: model.get_submodule(path) for path in groups}
        ranks = process_group.world_size()
        self.owners = owners if owners is not None else spread_tables(groups, ranks)
        self.plan = [entry for path in bags for entry in describe(groups[path], self.owners[path], fused=self.fused)]
        if fused is not None:
            for ebc in bags.values():
                _apply_optimizer_in_backward(fused.kind, ebc.parameters(), dict(fused.options))
        plan = sharding_plan(bags, self.owners, fused=self.fused, device=device, ranks=ranks, ranks_of_host=process_group.ranks_of_host())
        synchronize_batch_norm(model)
        sharder: Any = EmbeddingBagCollectionSharder()
        self.parallel = DistributedModelParallel(model, device=device, plan=plan, sharders=[sharder])
        _add_up_gradients(self.parallel)
        self.model: nn.Module = self.parallel.module
        state = self.parallel.state_dict()
        self._state: dict[str, ShardedTensor] = {
            f"{path}/{table.field}": state[f"{path}.embedding_bags.{table.field}.weight"] for path, group in groups.items() for table in group
        }
        parameters = dict(self.parallel.named_parameters())
        self.local = self._local_tables(TABLES, parameters)
        self.first_order = self._local_tables(FIRST_ORDER, parameters)

    def _local_tables(self, path: str, parameters: Mapping[str, nn.Parameter]) -> dict[str, LocalTable]:
        return {
            table.field: LocalTable(
                table=table,
                first_row=shard.metadata.shard_offsets[0],
                values=shard.tensor,
                parameter=None if self.fused else parameters[f"{path}.embedding_bags.{table.field}.weight"],
            )
            for table in (self.tables if path == TABLES else self.first_order_tables)
            for shard in self._state[f"{path}/{table.field}"].local_shards()
        }

    def local_by_key(self) -> Iterator[tuple[str, LocalTable]]:
        """This rank's parts of all tables, each under the name it has in `table_tensors`."""
        for path, group in ((TABLES, self.local), (FIRST_ORDER, self.first_order)):
            for field, local in group.items():
                yield f"{path}/{field}", local

    def table_tensors(self) -> dict[str, ShardedTensor]:
        """Every table as a ShardedTensor over the kernels' own memory, by name; the same names on every rank."""
        return dict(self._state)

    def tensors_like_tables(self, kind: str, local: Mapping[str, torch.Tensor]) -> dict[str, ShardedTensor]:
        """ShardedTensors that lie as the tables lie, made of this rank's parts: for optimizer state of the tables' shape.

        local:   tensors of the shape of this rank's parts, by the names of `local_by_key`.
        returns: named "<kind>/<name of the table>", one for every table, the same names on every rank.
        """
        tensors = {}
        for key, table in self._state.items():
            shards = [Shard(local[key], shard.metadata) for shard in table.local_shards()]
            tensors[f"{kind}/{key}"] = ShardedTensor._init_from_local_shards_and_global_metadata(shards, table.metadata())
        return tensors

    @torch.no_grad()
    def start_tables(self, seed: int, deviation: float) -> None:
        """Fill the tables under search from a normal distribution: the same numbers for one seed whatever the world size and the sharding.

        First-order tables and padding start at zero.
        """
        for local in self.first_order.values():
            local.values.zero_()
        for field, local in self.local.items():
            local.values.zero_()
            _fill(local, field, seed, deviation)


def chunks(group: Mapping[str, LocalTable]) -> Iterator[TableChunk]:
    """This rank's parts of some tables in pieces of bounded size, on CPU, without padding."""
    for field, local in group.items():
        rows = max(1, CHUNK_NUMBERS // local.table.stored_width)
        for start in range(0, local.values.shape[0], rows):
            piece = local.columns[start : start + rows].detach().cpu().contiguous()
            yield TableChunk(field, local.first_row + start, piece)


def _add_up_gradients(parallel: DistributedModelParallel) -> None:
    """Make the gradient of every weight the sum over ranks of what each rank's loss gives it, where DDP and TorchRec take the mean.

    The loss of a rank is its share of the loss of the global batch, so the sum is what is wanted. Scaled up for the mean to scale it down again, it
    would be rounded twice, and differ with the number of ranks.
    """
    set_gradient_division(False)
    for module in parallel.modules():
        if isinstance(module, DistributedDataParallel):
            module.register_comm_hook(None, _sum_of_bucket)


def _sum_of_bucket(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def _fill(local: LocalTable, name: str, seed: int, deviation: float) -> None:
    """Start `local` block by block, each block from a seed of its own: a rank makes just the blocks that it holds."""
    first, last = local.first_row, local.first_row + local.values.shape[0]
    for block in range(first // START_ROWS, -(-last // START_ROWS)):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{block}".encode()))
        block_first = block * START_ROWS
        rows = min(START_ROWS, local.table.rows - block_first)
        values = torch.randn(rows, local.table.width, generator=generator) * deviation
        start, stop = max(first, block_first), min(last, block_first + rows)
        local.columns[start - first : stop - first] = values[start - block_first : stop - block_first].to(local.values.device)
