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

KERNEL_WIDTH = 4
"""Fused kernels need the width of a table to be a multiple of this (fbgemm-gpu, on CPU too)."""


@dataclass(frozen=True)
class Table:
    """One embedding table.

    field:        the field that reads it.
    rows:         C_j, row 0 for unknown values.
    width:        columns in use.
    stored_width: columns that lie in memory: `width`, or `width` filled up with columns that stay zero where a kernel needs it.
    base_width:   columns that it had in the supernet.
    precision:    of its numbers, as in `precision.tables`.
    """

    field: str
    rows: int
    width: int
    stored_width: int
    base_width: int
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


def stored_width(width: int, *, fused: bool) -> int:
    """`width`, raised to what the kernel can hold."""
    return -(-width // KERNEL_WIDTH) * KERNEL_WIDTH if fused else width


def base_tables(
    cardinalities: Mapping[str, int], base_width: int, precision: TablePrecision, *, fused: bool
) -> tuple[Table, ...]:
    """The supernet's tables: d_j = min(base_width, C_j), so that no table has more columns than rows (HAM paper, section 3.3)."""
    widths = {field: min(base_width, rows) for field, rows in cardinalities.items()}
    return tuple(
        Table(field, cardinalities[field], width, stored_width(width, fused=fused), width, precision)
        for field, width in widths.items()
    )


def sliced_tables(
    tables: Iterable[Table], columns: Mapping[str, torch.Tensor], *, fused: bool
) -> tuple[Table, ...]:
    """The tables with only `columns` of each; a table without any is left out."""
    return tuple(
        replace(table, width=len(kept), stored_width=stored_width(len(kept), fused=fused))
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
                embedding_dim=table.stored_width,
                num_embeddings=table.rows,
                feature_names=[table.field],
                data_type=_KERNEL_TYPE[table.precision],
                pooling=PoolingType.SUM,
            )
            for table in tables
        ],
        device=torch.device(device),
    )
