"""The tables of a model: which there are, how wide, and how TorchRec is told of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote

import torch
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from ham_dist.config.schema import TablePrecision

BYTES_PER_NUMBER = 4
"""float32: of what is looked up, and of what an optimizer remembers. A table's own are `Table.number_bytes`."""

_KERNEL_TYPE = {"float32": DataType.FP32, "float16": DataType.FP16, "bfloat16": DataType.BF16}

KERNEL_DIM = 4
"""Fused kernels need the width of a table to be a multiple of this (fbgemm-gpu, on CPU too)."""


@dataclass(frozen=True)
class Table:
    """One embedding table.

    field:        the field that reads it.
    num_embeddings:         C_j, row 0 for unknown values.
    embedding_dim:        columns in use.
    stored_dim: columns that lie in memory: `embedding_dim`, or `embedding_dim` filled up with columns that stay zero where a kernel needs it.
    base_dim:   columns that it had in the supernet.
    precision:    of its numbers, as in `precision.tables`.
    """

    field: str
    num_embeddings: int
    embedding_dim: int
    stored_dim: int
    base_dim: int
    precision: TablePrecision = "float32"

    @property
    def module_name(self) -> str:
        """Its name in TorchRec's `embedding_bags`, an nn.ModuleDict.

        A field may be called like an attribute of a module (`type`, `items`, `to`), and may hold characters that a module's name may not have.
        """
        return "table_" + quote(self.field, safe="").replace(".", "%2E")

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype

    @property
    def number_bytes(self) -> int:
        """Bytes of one of its numbers."""
        return self.dtype.itemsize


@dataclass(frozen=True)
class TableChunk:
    """Some rows of one table, all its columns in use.

    values: (rows, width), the rows from `first_row` on, in the table's precision or wider.
    """

    field: str
    first_row: int
    values: torch.Tensor


def stored_dim(width: int, *, fused: bool) -> int:
    """`width`, raised to what the kernel can hold."""
    return -(-width // KERNEL_DIM) * KERNEL_DIM if fused else width


def base_tables(
    num_embeddings: Mapping[str, int], base_dim: int, precision: TablePrecision, *, fused: bool
) -> tuple[Table, ...]:
    """The supernet's tables: d_j = min(base_dim, C_j), so that no table has more columns than rows (HAM paper, section 3.3)."""
    dims = {field: min(base_dim, rows) for field, rows in num_embeddings.items()}
    return tuple(
        Table(field, num_embeddings[field], width, stored_dim(width, fused=fused), width, precision)
        for field, width in dims.items()
    )


def sliced_tables(
    tables: Iterable[Table], columns: Mapping[str, torch.Tensor], *, fused: bool
) -> tuple[Table, ...]:
    """The tables with only `columns` of each; a table without any is left out."""
    return tuple(
        replace(table, embedding_dim=len(kept), stored_dim=stored_dim(len(kept), fused=fused))
        for table in tables
        if len(kept := columns[table.field])
    )


def embedding_bags(tables: Iterable[Table], device: torch.device | str = "meta") -> EmbeddingBagCollection:
    """TorchRec's module for `tables`, which give the sum of a bag's rows; without memory of its own by default.

    The mean is for the caller to take, for two reasons. TorchRec's own, of rows that are spread over ranks, divides by the count + 1e-6, and the sums
    of all other tables of the collection as well. FBGEMM's on CPU is slow (pytorch/FBGEMM issue 669; perf/results/training_cpu_2026-11.md).
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
