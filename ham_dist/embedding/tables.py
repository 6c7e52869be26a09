"""The embedding tables of a model: their shapes, their precision, and the TorchRec module that holds them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote

import torch
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from ham_dist.config.schema import TablePrecision

BYTES_PER_NUMBER = 4
"""Bytes of a float32: of looked-up vectors and optimizer state. For a table use `Table.number_bytes`."""

_KERNEL_TYPE = {"float32": DataType.FP32, "float16": DataType.FP16, "bfloat16": DataType.BF16}

KERNEL_DIM = 4
"""The dim of a table in a fused kernel must be a multiple of this (fbgemm-gpu, on CPU too)."""


@dataclass(frozen=True)
class Table:
    """One embedding table.

    Attributes:
        field: The field that reads it.
        num_embeddings: C_j; row 0 stands for unknown values.
        embedding_dim: Columns in use.
        stored_dim: Columns in memory: `embedding_dim`, with zero padding up to a multiple of `KERNEL_DIM`
            where the compute kernel needs it.
        base_dim: Columns in the supernet.
        precision: Data type of its numbers, as in the setting `precision.tables`.
    """

    field: str
    num_embeddings: int
    embedding_dim: int
    stored_dim: int
    base_dim: int
    precision: TablePrecision = "float32"

    @property
    def module_name(self) -> str:
        """Name of the table in TorchRec's `embedding_bags`, an nn.ModuleDict.

        Field names are quoted: a field may be called like an attribute of a module (`type`, `items`, `to`),
        or contain characters that are not allowed in a module name.
        """
        return "table_" + quote(self.field, safe="").replace(".", "%2E")

    @property
    def dtype(self) -> torch.dtype:
        """Data type of its numbers."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype

    @property
    def number_bytes(self) -> int:
        """Bytes per number."""
        return self.dtype.itemsize


@dataclass(frozen=True)
class TableChunk:
    """Consecutive rows of one table, with all columns in use.

    Attributes:
        field: The field that reads the table.
        first_row: Row number of the first row in `values`.
        values: (rows, embedding_dim), in the table's precision or a wider one.
    """

    field: str
    first_row: int
    values: torch.Tensor


def stored_dim(embedding_dim: int, *, fused: bool) -> int:
    """Returns `embedding_dim` rounded up to a dim that the compute kernel supports."""
    return -(-embedding_dim // KERNEL_DIM) * KERNEL_DIM if fused else embedding_dim


def base_tables(
    num_embeddings: Mapping[str, int],
    dim_of: Callable[[int], int],
    precision: TablePrecision,
    *,
    fused: bool,
) -> tuple[Table, ...]:
    """Returns the supernet's tables.

    Args:
        num_embeddings: C_j, by field.
        dim_of: Computes d_j from C_j.
        precision: Data type of the tables.
        fused: True for fused kernels, which need padding.
    """
    dims = {field: dim_of(rows) for field, rows in num_embeddings.items()}
    return tuple(
        Table(field, num_embeddings[field], dim, stored_dim(dim, fused=fused), dim, precision)
        for field, dim in dims.items()
    )


def sliced_tables(
    tables: Iterable[Table], columns: Mapping[str, torch.Tensor], *, fused: bool
) -> tuple[Table, ...]:
    """Returns the tables with only `columns` of each; a table without any is left out."""
    return tuple(
        replace(table, embedding_dim=len(kept), stored_dim=stored_dim(len(kept), fused=fused))
        for table in tables
        if len(kept := columns[table.field])
    )


def embedding_bags(tables: Iterable[Table], device: torch.device | str = "meta") -> EmbeddingBagCollection:
    """Returns TorchRec's module for `tables`, with sum pooling; without memory (meta device) by default.

    The caller divides by the bag lengths where it needs the mean, for two reasons. For tables whose rows are
    spread over ranks, TorchRec's mean divides by the bag length + 1e-6, and divides the sums of all other
    tables of the collection, too. FBGEMM's mean is slow on CPU (pytorch/FBGEMM issue 669;
    perf/results/training_cpu_2026-11.md).
    """
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=table.module_name,
                embedding_dim=table.stored_dim,
                num_embeddings=table.num_embeddings,
                feature_names=[table.field],
                data_type=_KERNEL_TYPE[table.precision],
                pooling=PoolingType.SUM,
            )
            for table in tables
        ],
        device=torch.device(device),
    )
