"""A CTR model with its tables spread over the ranks, and each rank's view of its own part of them.

C rows and d columns of one table; a rank holds some rows and some columns of it, or none
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.distributed._shard.sharded_tensor import (
    Shard,
    ShardedTensor,
    ShardedTensorMetadata,
    TensorProperties,
)
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.data.reader.batch import Batch
from ham_dist.data.reader.order import rows_of_rank
from ham_dist.distributed.planning.placement import Part, Placement, Plan
from ham_dist.distributed.planning.table_optimizers import TableRule
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.batch_norm import synchronize_batch_norm
from ham_dist.distributed.sharding.exchange import even_blocks, move, windows
from ham_dist.distributed.sharding.id_prefetch import IdExchange
from ham_dist.distributed.sharding.lookups import Caches, add_up_gradients
from ham_dist.embedding.mask import ColumnMask
from ham_dist.embedding.tables import Table, TableChunk

TABLES, FIRST_ORDER = "tables.ebc", "first_order_tables"
"""Where a CTRModel keeps its tables under search, and its first-order tables."""

START_ROWS = 65_536
"""Rows that are started from one seed; fixed, so that a table's start does not depend on how it is spread."""


@dataclass(frozen=True)
class LocalTable:
    """This rank's part of one table.

    table:     what it is a part of.
    part:      which part.
    values:    (rows, stored columns) of the part; the kernel's own memory, so writing to it moves the table.
    parameter: what is trained where the part has a gradient; None under a fused kernel.
    """

    table: Table
    part: Part
    values: torch.Tensor
    parameter: nn.Parameter | None

    @property
    def columns(self) -> torch.Tensor:
        """(rows of the part, its columns in use), without padding; a view."""
        return self.values[:, : self.in_use.stop - self.in_use.start]

    @property
    def in_use(self) -> slice:
        """Which of the table's columns in use lie here."""
        first = self.part.first_column
        return slice(first, max(first, min(self.table.width, first + self.part.columns)))


class ShardedModel:
    """A model placed on the ranks.

    model:       the model itself; calling it bypasses DDP, as steps on alpha and evaluation need.
    parallel:    the same under DistributedModelParallel, for steps on the weights.
    mask:        over the columns of the tables under search.
    rule:        how its tables move.
    plan:        where each table lies.
    tables:      the tables under search; first_order_tables: those of width 1 beside them, if any.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        mask: ColumnMask,
        *,
        device: torch.device,
        rule: TableRule,
        learning_rate: float,
    ) -> None:
        """Shard `model`, whose tables have no memory yet.

        plan:          places in `model` of the EmbeddingBagCollections are TABLES, and FIRST_ORDER where there are such.
        learning_rate: of the rule, where the kernels apply it inside the backward pass.
        """
        self.device = device
        self.mask = mask
        self.rule = rule
        self.plan = plan
        self.tables = tuple(placement.table for placement in plan.groups[TABLES].values())
        self.first_order_tables = tuple(
            placement.table for placement in plan.groups.get(FIRST_ORDER, {}).values()
        )
        synchronize_batch_norm(model)
        self.parallel = _parallel(model, plan, device, rule, learning_rate)
        self.model: nn.Module = self.parallel.module
        self._exchange = IdExchange(self.model, device)
        self._sent: WeakKeyDictionary[KeyedJaggedTensor, KeyedJaggedTensor] = WeakKeyDictionary()
        state, parameters = self.parallel.state_dict(), dict(self.parallel.named_parameters())
        self._placements = dict(self.placements())
        parts = {
            f"{path}/{field}": _local_table(
                placement, state, parameters, f"{path}.embedding_bags.{field}.weight"
            )
            for path, group in plan.groups.items()
            for field, placement in group.items()
        }
        self._parts = {key: local for key, local in parts.items() if local is not None}
        self._caches = Caches(self.parallel) if plan.caches else None

    def inputs(self, features: KeyedJaggedTensor, global_rows: int) -> tuple[KeyedJaggedTensor, int | None]:
        """What the model takes for this rank's part of a batch of `global_rows` rows: features, and how many of their rows are samples.

        Where rows of tables are spread over ranks, partial sums are exchanged in pieces of one size: a rank with fewer rows than the largest part
        gets empty bags up to that (16 rows a table at most, a length each: no id, no lookup), and the model drops their zeros right behind the
        lookup. The sizes of all parts follow from `global_rows`, without a word between ranks. None for the number where nothing was added.
        """
        if not self.plan.needs_equal_parts or process_group.world_size() == 1:
            return features, None
        sent = self._sent.pop(features, None)
        return (self._of_equal_parts(features, global_rows) if sent is None else sent), features.stride()

    def ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; while one is worked on, the ids of the next two are on their way between the ranks (and to the GPU)."""
        if process_group.world_size() == 1 and self.device.type == "cpu":
            return batches
        return self._exchange.ahead(batches, self._to_send)

    def _to_send(self, batch: Batch) -> KeyedJaggedTensor:
        features, _ = self.inputs(batch.sparse_features, batch.global_rows)
        if features is not batch.sparse_features:
            self._sent[batch.sparse_features] = features
        return features

    @staticmethod
    def _of_equal_parts(features: KeyedJaggedTensor, global_rows: int) -> KeyedJaggedTensor:
        ranks = process_group.world_size()
        parts = (rows_of_rank(global_rows, rank, ranks) for rank in range(ranks))
        return padded(features, max(stop - start for start, stop in parts))

    def placements(self) -> Iterator[tuple[str, Placement]]:
        """Every table, by the name that it has in `table_tensors`; the same on every rank."""
        for path, group in self.plan.groups.items():
            for field, placement in group.items():
                yield f"{path}/{field}", placement

    def part(self, key: str) -> LocalTable | None:
        """This rank's part of a table, by its name in `placements`; to be read and written before the next lookup."""
        if self._caches is not None:
            self._caches.empty()
        return self._parts.get(key)

    @property
    def local(self) -> dict[str, LocalTable]:
        """This rank's parts of the tables under search, by table name; as `part` gives them."""
        return self._of_group(TABLES)

    @property
    def first_order(self) -> dict[str, LocalTable]:
        """Likewise of the first-order tables."""
        return self._of_group(FIRST_ORDER)

    def table_tensors(self) -> dict[str, Any]:
        """Every table over the kernels' own memory, by name; the same names under every plan and on every rank.

        A table whose parts are on the ranks is a ShardedTensor, one with a copy on every rank is a plain tensor: checkpoints load either from either.
        """
        return {
            key: self.tensor_like(
                key, local.values if (local := self.part(key)) else None, placement.table.dtype
            )
            for key, placement in self.placements()
        }

    def tensor_like(
        self, key: str, local: torch.Tensor | None, dtype: torch.dtype, *, of_row: bool = False
    ) -> Any:
        """A whole tensor that lies as the table `key` lies, in pieces: the table itself or state of its optimizer.

        local:  (rows, stored columns) of this rank's part; None where it holds nothing.
        dtype:  of its numbers, on all ranks.
        of_row: for state with one number a row: `local` is (rows,).
        """
        placement = self._placements[key]
        if placement.replicated:
            return local
        pieces = placement.piece_metadata(self.device, process_group.ranks_of_host(), of_row=of_row)
        here = []
        if local is not None:
            mine = [piece for rank, piece in pieces if rank == process_group.rank()]
            here = [
                Shard(values, piece)
                for values, piece in zip(
                    local.split([piece.shard_sizes[0] for piece in mine]), mine, strict=True
                )
            ]
        size = [placement.table.rows] if of_row else [placement.table.rows, placement.table.stored_width]
        metadata = ShardedTensorMetadata(
            [piece for _, piece in pieces], torch.Size(size), TensorProperties(dtype=dtype)
        )
        return ShardedTensor._init_from_local_shards_and_global_metadata(here, metadata)

    def kernel_state(self) -> dict[str, dict[str, torch.Tensor]]:
        """What the fused kernels remember of this rank's parts, live, by table (as in `placements`) and state: (rows, columns), or (rows,)."""
        states: dict[str, dict[str, torch.Tensor]] = {}
        if self.rule.fused is None:
            return states
        for name, found in self.parallel.fused_optimizer.state_dict()["state"].items():
            path, _, rest = name.rpartition(".embedding_bags.")
            field = rest.removesuffix(".weight")
            states[f"{path}/{field}"] = {
                state: found[f"{field}.{kernel_key}"].local_shards()[0].tensor
                for state, kernel_key in zip(self.rule.states, self.rule.kernel_keys, strict=True)
            }
        return states

    @torch.no_grad()
    def start_tables(self, seed: int, deviation: float) -> None:
        """Fill the tables under search from a normal distribution: the same numbers for one seed whatever the world size and the plan.

        First-order tables and padding start at zero.
        """
        for local in self.first_order.values():
            local.values.zero_()
        for field, local in self.local.items():
            local.values.zero_()
            _fill(local, field, seed, deviation)

    def chunks(self, path: str) -> Iterator[TableChunk]:
        """The tables of one group in pieces of bounded size, on CPU, without padding: whole rows, each on one rank.

        A collective, where columns of a table lie on several ranks: go through to the end.

        Rows whose columns lie on several ranks are brought together on one, a piece at a time, and each rank gets as many; of a table with a copy on
        every rank, one rank gives all.
        """
        for number, (field, placement) in enumerate(self.plan.groups.get(path, {}).items()):
            local = self.part(f"{path}/{field}")
            if placement.splits_columns:
                yield from self._joined_chunks(placement, local)
            elif local is not None and (
                not placement.replicated or process_group.rank() == number % process_group.world_size()
            ):
                for start, stop in windows((local.part,)):
                    rows = local.columns[start - local.part.first_row : stop - local.part.first_row]
                    yield TableChunk(field, start, rows.detach().cpu().contiguous())

    def _joined_chunks(self, placement: Placement, local: LocalTable | None) -> Iterator[TableChunk]:
        for part, rows in joined_rows(placement, local, self.device):
            if part.rows:
                yield TableChunk(placement.table.field, part.first_row, rows.cpu())

    def _of_group(self, path: str) -> dict[str, LocalTable]:
        return {
            field: local
            for field in self.plan.groups.get(path, {})
            if (local := self.part(f"{path}/{field}")) is not None
        }


def joined_rows(
    placement: Placement, local: LocalTable | None, device: torch.device
) -> Iterator[tuple[Part, torch.Tensor]]:
    """Whole rows of a table whose columns lie on several ranks, some at a time, shared out evenly. A collective: go through to the end.

    local:  this rank's part.
    yields: which rows this rank got, maybe none, and (rows, width) of them: the columns in use.
    """
    width = placement.table.width
    for start, stop in windows(placement.parts):
        blocks = even_blocks(start, stop, width, process_group.world_size())
        mine = blocks[process_group.rank()]
        rows = torch.empty(mine.rows, width, device=device)
        values = None if local is None else local.values
        move(placement.parts, values, blocks, rows, torch.arange(width), replicated=False, device=device)
        yield mine, rows


def padded(features: KeyedJaggedTensor, rows: int) -> KeyedJaggedTensor:
    """`features` with empty bags behind those of each key, up to `rows` of them."""
    if features.stride() == rows:
        return features
    lengths = features.lengths().view(len(features.keys()), -1)
    more = lengths.new_zeros(len(features.keys()), rows - lengths.shape[1])
    return KeyedJaggedTensor(
        features.keys(), features.values(), lengths=torch.cat([lengths, more], dim=1).view(-1), stride=rows
    )


def _parallel(
    model: nn.Module, plan: Plan, device: torch.device, rule: TableRule, learning_rate: float
) -> DistributedModelParallel:
    """`model` under TorchRec: tables as planned, the rest replicated, and gradients added up over the ranks."""
    shardings: dict[str, EmbeddingModuleShardingPlan] = {}
    for path, group in plan.groups.items():
        bags = model.get_submodule(path).embedding_bags
        if rule.fused is not None:
            kind, options = rule.fused
            trained = [bags[field].weight for field, placement in group.items() if placement.fused]  # type: ignore[index, union-attr]
            _apply_optimizer_in_backward(kind, trained, {"lr": learning_rate, **options})
        shardings[path] = EmbeddingModuleShardingPlan(
            {
                field: placement.sharding(device, process_group.ranks_of_host())
                for field, placement in group.items()
            }
        )
    # fbgemm takes managed memory for tables on the host by default, which can hang a GPU that is asked for more than it has.
    sharder: Any = EmbeddingBagCollectionSharder(
        fused_params={"uvm_host_mapped": True} if plan.uses_host_memory else None
    )
    parallel = DistributedModelParallel(
        model, device=device, plan=ShardingPlan(shardings), sharders=[sharder]
    )
    add_up_gradients(parallel)
    return parallel


def _local_table(
    placement: Placement, state: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], name: str
) -> LocalTable | None:
    part = placement.part_of(process_group.rank())
    if part is None:
        return None
    if placement.fused:
        return LocalTable(placement.table, part, state[name].local_shards()[0].tensor, None)
    parameter = parameters[name]
    return LocalTable(placement.table, part, parameter.detach(), parameter)


def _fill(local: LocalTable, name: str, seed: int, deviation: float) -> None:
    """Start `local` block by block, each block from a seed of its own: a rank makes just the blocks that it holds a part of."""
    first, last = local.part.first_row, local.part.first_row + local.part.rows
    for block in range(first // START_ROWS, -(-last // START_ROWS)):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{block}".encode()))
        block_first = block * START_ROWS
        rows = min(START_ROWS, local.table.rows - block_first)
        values = torch.randn(rows, local.table.width, generator=generator) * deviation
        start, stop = max(first, block_first), min(last, block_first + rows)
        local.columns[start - first : stop - first] = values[
            start - block_first : stop - block_first, local.in_use
        ].to(local.values.device)
