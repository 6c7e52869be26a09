"""Settings of the distribution of tables over the ranks."""

from typing import Annotated, Literal

from pydantic import Field

from ham_dist.config.base import Settings

ShardingType = Literal["table_wise", "row_wise", "column_wise", "table_row_wise", "grid", "data_parallel"]
"""`table_wise`: the whole table on one rank; `row_wise`: blocks of rows on all ranks; `column_wise`: blocks
of columns on several ranks; `table_row_wise`: blocks of rows on the ranks of one host; `grid`: blocks of
columns on several hosts, each split into blocks of rows on the ranks of that host; `data_parallel`: a copy on
every rank."""


ComputeKernel = Literal["device", "fused_uvm", "fused_uvm_caching"]
"""`device`: TorchRec's `fused` or `dense`, whichever the table optimizer needs, in the memory of the rank's
device; `fused_uvm`: in host memory, from which the GPU reads rows; `fused_uvm_caching`: the same, with the
most recently used rows cached on the GPU."""


class ShardingSettings(Settings):
    """Distribution of the tables over the ranks. `ham-dist train --plan-only` shows the resulting plan."""

    sharding_type: Literal["auto", ShardingType] = "auto"
    """Sharding type of every table that is not in `sharding_types`: `auto`, `table_wise`, `row_wise`,
    `column_wise`, `table_row_wise`, `grid` or `data_parallel`. `auto` on GPU: the fastest plan that fits, as
    estimated by TorchRec's planner. `auto` on CPU: `table_wise`, balanced by size, and `row_wise` for a table
    too large for one rank."""
    sharding_types: dict[str, ShardingType] = {}  # noqa: RUF012 - pydantic copies it
    """Sharding type of individual tables, by field: { user = "row_wise" }."""
    compute_kernel: Literal["auto", ComputeKernel] = "device"
    """Compute kernel of every table that is not in `compute_kernels`. `device`: the table is in the memory of
    the rank's device. `fused_uvm`: in host memory, from which the GPU reads rows. `fused_uvm_caching`: in
    host memory, with the most recently used rows cached on the GPU. The last two need a GPU and a fused table
    optimizer. `auto`: `device`, and if not all tables fit, `fused_uvm_caching` for as few tables as possible,
    the largest first. On CPU, tables are always in host memory."""
    compute_kernels: dict[str, ComputeKernel] = {}  # noqa: RUF012
    """Compute kernel of individual tables, by field: { user = "fused_uvm_caching" }."""
    cache_load_factor: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the rows of a `fused_uvm_caching` table that fit in its cache on the GPU (TorchRec's
    `load_factor`)."""
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a rank's memory that tables, their gradients and their optimizer state may use. The rest is
    for batches, activations and dense weights. TorchRec's planner also reserves 15 %."""
