"""A CTR model with its tables sharded over the ranks.

Shape letters: B rows of the batch on this rank, C rows and d columns of one table.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.data.reader.batch import Batch
from ham_dist.data.reader.order import rows_of_rank
from ham_dist.distributed.internals import Shard, ShardedTensorMetadata, TensorProperties, sharded_tensor
from ham_dist.distributed.planning.placement import Placement, Plan
from ham_dist.distributed.planning.table_optimizers import TableOptimizer
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding.batch_norm import synchronize_batch_norm
from ham_dist.distributed.sharding.exchange import windows
from ham_dist.distributed.sharding.id_prefetch import IdPrefetcher, PreparedBatch, padded
from ham_dist.distributed.sharding.local_table import LocalTable, initialize, joined_rows, local_table
from ham_dist.distributed.sharding.lookups import Caches
from ham_dist.distributed.sharding.parallel import parallelize
from ham_dist.embedding.mask import ColumnMask
from ham_dist.embedding.tables import TableChunk

TABLES, FIRST_ORDER = "tables.ebc", "first_order_tables"
"""Module paths in a CTRModel of its tables under search and of its first-order tables."""


class ShardedModel:
    """A model whose tables are sharded over the ranks, and whose other weights are replicated.

    Args:
        model: The model; its tables have no memory yet.
        plan: Placement of each table, with groups TABLES and, if the model has first-order tables,
            FIRST_ORDER.
        mask: Mask over the columns of the tables under search.
        device: Device of this rank.
        table_optimizer: Optimizer of the tables.
        learning_rate: Learning rate of the tables, where the kernels apply it inside the backward pass.
    Attributes:
        model: The model; calling it bypasses DDP, as needed for steps on alpha and for evaluation.
        parallel: The same model in DistributedModelParallel, for steps on the weights.
        tables: The tables under search.
        first_order_tables: Tables of dim 1 for the first-order term; empty if the model has none.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        mask: ColumnMask,
        *,
        device: torch.device,
        table_optimizer: TableOptimizer,
        learning_rate: float,
    ) -> None:
        self.device = device
        self.mask = mask
        self.table_optimizer = table_optimizer
        self.plan = plan
        self.tables = tuple(placement.table for placement in plan.groups[TABLES].values())
        self.first_order_tables = tuple(
            placement.table for placement in plan.groups.get(FIRST_ORDER, {}).values()
        )
        synchronize_batch_norm(model)
        self.parallel = parallelize(model, plan, device, table_optimizer, learning_rate)
        self.model: nn.Module = self.parallel.module
        self._prefetcher = IdPrefetcher(self.model, device)
        state, parameters = self.parallel.state_dict(), dict(self.parallel.named_parameters())
        self._placements = dict(self.placements())
        parts = {
            f"{path}/{field}": local_table(
                placement,
                state,
                parameters,
                f"{path}.embedding_bags.{placement.table.module_name}.weight",
            )
            for path, group in plan.groups.items()
            for field, placement in group.items()
        }
        self._local_tables = {key: local for key, local in parts.items() if local is not None}
        self._caches = Caches(self.parallel) if plan.caches else None

    def prepare(self, batch: Batch) -> PreparedBatch:
        """Returns `batch` with the inputs that the model needs.

        Where rows of tables are on several ranks, partial sums are exchanged in blocks of equal size. A rank
        with fewer rows than the largest part therefore gets empty bags up to that size (at most 16 rows per
        table, one length each: no ids, no lookups), and the model drops their zeros after the lookup. The
        sizes of all parts follow from `batch.global_rows`, so this needs no communication.
        """
        ranks, features = process_group.world_size(), batch.sparse_features
        rows = None
        if self.plan.needs_equal_batches and ranks > 1:
            parts = (rows_of_rank(batch.global_rows, rank, ranks) for rank in range(ranks))
            rows = features.stride()
            features = padded(features, max(stop - start for start, stop in parts))
        return PreparedBatch(batch.sparse_features, batch.labels, batch.global_rows, features, rows)

    def prefetch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields the batches, prepared, while the ids of the next two are sent to other ranks (and GPU)."""
        if process_group.world_size() == 1 and self.device.type == "cpu":
            return batches
        return self._prefetcher.prefetch(batches, self.prepare)

    def logits(self, batch: Batch, *, trains: bool = False) -> torch.Tensor:
        """Returns the logits, (B,), of this rank's part of a batch, under the current mask.

        Args:
            batch: The ids of a PreparedBatch may have been sent already; those of any other batch are
                exchanged here.
            trains: True for a step on the weights, whose gradients DDP sums over the ranks.
        """
        model = self.parallel if trains else self.model
        logits: torch.Tensor = model(*self.inputs(batch))
        return logits

    def inputs(self, batch: Batch) -> tuple[KeyedJaggedTensor, int | None, object]:
        """Returns the inputs for a batch: ids, number of rows, and the ids' exchange if it has begun."""
        prepared = batch if isinstance(batch, PreparedBatch) else self.prepare(batch)
        return prepared.features, prepared.rows, prepared.sent

    def placements(self) -> Iterator[tuple[str, Placement]]:
        """Yields the name of every table in `table_tensors` with its placement; identical on every rank."""
        for path, group in self.plan.groups.items():
            for field, placement in group.items():
                yield f"{path}/{field}", placement

    def local_table(self, key: str) -> LocalTable | None:
        """Returns this rank's shard of a table, by its name in `placements`; None if it has none.

        The shard is valid for reads and writes until the next lookup.
        """
        if self._caches is not None:
            self._caches.empty()
        return self._local_tables.get(key)

    @property
    def local(self) -> dict[str, LocalTable]:
        """This rank's shards of the tables under search, by table name, as returned by `local_table`."""
        return self._of_group(TABLES)

    @property
    def first_order(self) -> dict[str, LocalTable]:
        """This rank's shards of the first-order tables, by table name, as returned by `local_table`."""
        return self._of_group(FIRST_ORDER)

    def table_tensors(self) -> dict[str, Any]:
        """Returns every table over the kernels' own memory, by name.

        The names are the same under every plan and on every rank. A sharded table is a ShardedTensor, a table
        with a copy on every rank is a plain tensor; checkpoints load either from either.
        """
        return {
            key: self.tensor_like(
                key, local.values if (local := self.local_table(key)) else None, placement.table.dtype
            )
            for key, placement in self.placements()
        }

    def tensor_like(
        self, key: str, local: torch.Tensor | None, dtype: torch.dtype, *, of_row: bool = False
    ) -> Any:
        """Returns a global tensor with the sharding of table `key`: the table, or state of its optimizer.

        Args:
            key: The table's name in `placements`.
            local: This rank's shard, (rows, stored columns); None if it has none.
            dtype: Data type, on all ranks.
            of_row: True for state with one number per row: `local` is (rows,).
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
        size = (
            [placement.table.num_embeddings]
            if of_row
            else [placement.table.num_embeddings, placement.table.stored_dim]
        )
        metadata = ShardedTensorMetadata(
            [piece for _, piece in pieces], torch.Size(size), TensorProperties(dtype=dtype)
        )
        return sharded_tensor(here, metadata)

    def kernel_state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Returns the optimizer state of this rank's shards in fused kernels: the tensors, not copies.

        Returns:
            By table (as in `placements`) and state name: (rows, columns), or (rows,) for state with one
            number per row.
        """
        states: dict[str, dict[str, torch.Tensor]] = {}
        if self.table_optimizer.fused is None:
            return states
        fields = {placement.table.module_name: placement.table.field for _, placement in self.placements()}
        for name, found in self.parallel.fused_optimizer.state_dict()["state"].items():
            path, _, rest = name.rpartition(".embedding_bags.")
            table = rest.removesuffix(".weight")
            states[f"{path}/{fields[table]}"] = {
                state: found[f"{table}.{kernel_key}"].local_shards()[0].tensor
                for state, kernel_key in zip(
                    self.table_optimizer.states, self.table_optimizer.kernel_keys, strict=True
                )
            }
        return states

    @torch.no_grad()
    def init_tables(self, seed: int, init_std: float) -> None:
        """Fills the tables under search from a normal distribution; first-order tables and padding are 0.

        The numbers depend on the seed only, not on the world size or the plan.
        """
        for local in self.first_order.values():
            local.values.zero_()
        for field, local in self.local.items():
            local.values.zero_()
            initialize(local, field, seed, init_std)

    @torch.no_grad()
    def scale_columns(self, factors: torch.Tensor) -> None:
        """Multiplies each column of the tables under search by its factor (S,), in the mask's layout.

        The optimizers' state does not change.
        """
        for field, local in self.local.items():
            of_table = factors[self.mask.layout.slices[field]]
            local.columns.mul_(of_table[local.in_use].to(local.values))

    def chunks(self, path: str) -> Iterator[TableChunk]:
        """Yields the tables of one group in chunks of bounded size, on CPU, without padding.

        The chunks have whole rows, and each row is yielded on one rank. A collective where columns of a table
        are on several ranks: iterate to the end. Their rows are joined a chunk at a time and split evenly
        over the ranks. A table with a copy on every rank is yielded on one rank.
        """
        for number, (field, placement) in enumerate(self.plan.groups.get(path, {}).items()):
            local = self.local_table(f"{path}/{field}")
            if placement.splits_columns:
                yield from self._joined_chunks(placement, local)
            elif local is not None and (
                not placement.replicated or process_group.rank() == number % process_group.world_size()
            ):
                for start, stop in windows((local.shard,)):
                    rows = local.columns[start - local.shard.first_row : stop - local.shard.first_row]
                    yield TableChunk(field, start, rows.detach().cpu().contiguous())

    def _joined_chunks(self, placement: Placement, local: LocalTable | None) -> Iterator[TableChunk]:
        for part, rows in joined_rows(placement, local, self.device):
            if part.rows:
                yield TableChunk(placement.table.field, part.first_row, rows.cpu())

    def _of_group(self, path: str) -> dict[str, LocalTable]:
        return {
            field: local
            for field in self.plan.groups.get(path, {})
            if (local := self.local_table(f"{path}/{field}")) is not None
        }
