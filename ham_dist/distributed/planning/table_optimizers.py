"""Table optimizers: each value of `optimizer.tables`, with its kernels, its state and the devices that have
it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torchrec.optim.optimizers import LAMB, PartialRowWiseAdam
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from ham_dist.config.schema import TABLE_OPTIMIZERS, OptimizerSettings, TablePrecision
from ham_dist.config.sharding import ComputeKernel
from ham_dist.embedding.tables import BYTES_PER_NUMBER
from ham_dist.errors import BackendError, ConfigError

EPSILON = 1e-8
"""Epsilon of Adagrad and row-wise Adagrad: fbgemm's default, passed to all kernels so that they compute the
same."""

ADAM_DECAY = 0.999
"""Beta 2 of all Adam variants: torch's and fbgemm's default."""

OpenOptimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]


SLOT_BYTES, INDEX_BYTES = 16, 4
"""Bytes on the GPU for the bookkeeping of a cached table: per slot of the cache, its row and when it was last
used; per row of the table, its slot (fbgemm_gpu/split_table_batched_embeddings_ops_training.py,
_apply_cache_state)."""


@dataclass(frozen=True)
class Memory:
    """The memory in which a table is stored.

    Attributes:
        kernel: The compute kernel, as in `sharding.compute_kernel`.
        cache_load_factor: With `fused_uvm_caching`, the share of the rows that the cache on the GPU has room
            for.
    """

    kernel: ComputeKernel
    cache_load_factor: float = 0.0


DEVICE = Memory("device")


class BytesHeld(NamedTuple):
    """Bytes of one or several shards of tables.

    Attributes:
        tables: On the device, the tables' numbers, or their cache.
        training_state: On the device, gradients and optimizer state.
        host: In the host memory of a GPU, tables and optimizer state.
    """

    tables: int
    training_state: int
    host: int = 0

    @property
    def device(self) -> int:
        """All bytes on the device."""
        return self.tables + self.training_state

    def plus(self, other: "BytesHeld") -> "BytesHeld":
        """Returns the sum of both."""
        return BytesHeld(
            self.tables + other.tables, self.training_state + other.training_state, self.host + other.host
        )


@dataclass(frozen=True)
class TableOptimizer:
    """An optimizer of embedding tables.

    Attributes:
        name: As in `optimizer.tables`.
        fused: The class that selects the optimizer in TorchRec's fused kernels, and its options without the
            learning rate. None for the dense kernel, where every table gets a gradient and `dense` updates
            it.
        dense: The same optimizer for parameters with gradients, such as data-parallel tables; None if there
            is none.
        states: Name of each optimizer state, and True if it has one number per row (otherwise one per
            weight).
        kernel_keys: The names of these states in TorchRec's fused kernels.
        devices: The devices that have its kernel.
        nearest: The most similar table optimizer, for the other devices.
    """

    name: str
    fused: tuple[type[torch.optim.Optimizer], Mapping[str, float]] | None
    dense: OpenOptimizer | None
    states: Mapping[str, bool]
    kernel_keys: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")
    nearest: str = "adam"

    @property
    def whole_rows(self) -> bool:
        """True if it computes one number from all columns of a row, which must then be on one rank."""
        return any(self.states.values()) or self.name == "lamb"

    @property
    def state_bytes_per_number(self) -> int:
        """Bytes of optimizer state per weight, without states of one number per row."""
        return sum(not of_row for of_row in self.states.values()) * BYTES_PER_NUMBER

    @property
    def passes(self) -> int:
        """Number of times that its kernel reads a row and its state in an update.

        LAMB reads them twice: for the length of the step, and to apply it
        (fbgemm_gpu/codegen/genscript/optimizers.py, split_precomputation).
        """
        return 2 if self.name == "lamb" else 1

    def require(self, device: str, precision: TablePrecision = "float32") -> None:
        """Checks that there is a kernel on `device` ("cpu" or "cuda") for tables of `precision`.

        Raises:
            BackendError: There is none; names the nearest table optimizer or precision that has one.
        """
        if device not in self.devices:
            raise BackendError(
                f'optimizer.tables = "{self.name}": this optimizer exists only on '
                f"{' and '.join(self.devices)}, and this run is on {device}.\n"
                f'  Set optimizer.tables = "{self.nearest}", the most similar one on {device}.'
            )
        if precision != "float32" and self.fused is None:
            nearest = (
                '"fused_adam", or "rowwise_adagrad"' if device == "cuda" else '"rowwise_adagrad" or "adagrad"'
            )
            raise BackendError(
                f'precision.tables = "{precision}": optimizer.tables = "{self.name}" would store gradients '
                f"and moments in {precision} too.\n"
                "Most squared gradients would be rounded to 0, and the update divides by them.\n"
                f"  Set optimizer.tables = {nearest}, which keep their state in float32; "
                'or precision.tables = "float32".'
            )
        if precision == "bfloat16" and device == "cpu":
            raise BackendError(
                'precision.tables = "bfloat16": bfloat16 kernels exist only on cuda, and this run is on '
                "cpu.\n"
                '  Set precision.tables = "float16".'
            )

    def bytes_of(
        self, rows: int, numbers: int, *, fused: bool, number_bytes: int, memory: Memory = DEVICE
    ) -> BytesHeld:
        """Returns the bytes of a shard of a table, with its optimizer state and, if it has one, its gradient.

        Tables that are looked up together share a cache, whose slots are as large as the largest row of them;
        this is left out.

        Args:
            rows: Rows of the shard.
            numbers: Weights in these rows.
            fused: True if a fused kernel updates the table.
            number_bytes: Bytes of a weight; optimizer state is float32.
            memory: The memory of the table. fbgemm stores state of one number per row always on the device
                (construct_split_state).
        """
        of_rows = sum(rows for of_row in self.states.values() if of_row) * BYTES_PER_NUMBER
        of_numbers = numbers * self.state_bytes_per_number
        if memory.kernel == "device":
            return BytesHeld(
                numbers * number_bytes, of_rows + of_numbers + (0 if fused else numbers * number_bytes)
            )
        in_cache = round(rows * memory.cache_load_factor) if memory.kernel == "fused_uvm_caching" else 0
        cache = (
            in_cache * numbers * number_bytes // max(1, rows)
            + in_cache * SLOT_BYTES
            + (rows * INDEX_BYTES if in_cache else 0)
        )
        return BytesHeld(cache, of_rows, numbers * number_bytes + of_numbers)

    def divisor(
        self, states: Mapping[str, torch.Tensor], gradient: torch.Tensor, steps: int
    ) -> torch.Tensor | float:
        """Returns the number by which the optimizer divides a gradient that it gets in each of `steps` steps.

        These steps come in addition to those in `states`. LAMB's trust ratio is left out.

        Args:
            states: Optimizer state of the rows of `gradient`, by name; has the shape of `gradient`, or (...,
                rows, 1) for one number per row.
            gradient: (..., rows, columns).
            steps: Number of steps.
        Returns:
            Has the shape of `gradient` or (..., rows, 1); 1 for SGD.
        """
        square = gradient.square()
        if "sum" in states:
            own = square.mean(dim=-1, keepdim=True) if self.states["sum"] else square
            return (states["sum"] + steps * own).sqrt() + EPSILON
        if "exp_avg_sq" in states:
            own = square.mean(dim=-1, keepdim=True) if self.states["exp_avg_sq"] else square
            return (states["exp_avg_sq"] / (1.0 - ADAM_DECAY**steps) + own).sqrt() + EPSILON
        return 1.0


def _adam(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=rate, fused=True)


def _sgd(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate)


def _adagrad(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(parameters, lr=rate, eps=EPSILON)


def _rowwise_adagrad(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return RowWiseAdagrad(parameters, lr=rate, eps=EPSILON)


_MOMENTS = {"exp_avg": False, "exp_avg_sq": False}
_GPU = ("cuda",)

TABLE_OPTIMIZER_OF_NAME: dict[str, TableOptimizer] = {}
"""All table optimizers by name, including those of plug-ins."""


def register_table_optimizer(table_optimizer: TableOptimizer) -> None:
    """Adds a table optimizer to the values of `optimizer.tables`.

    Raises:
        ConfigError: Its name is taken.
    """
    if table_optimizer.name in TABLE_OPTIMIZER_OF_NAME:
        raise ConfigError(
            f"optimizer.tables: a table optimizer {table_optimizer.name!r} is registered already. Use "
            "another name."
        )
    TABLE_OPTIMIZER_OF_NAME[table_optimizer.name] = table_optimizer
    if table_optimizer.name not in TABLE_OPTIMIZERS:
        TABLE_OPTIMIZERS.append(table_optimizer.name)


# Fused Adam, LAMB and partial row-wise Adam fail on fbgemm's CPU build ("is not supported in CPU mode").
for _table_optimizer in (
    TableOptimizer("adam", None, _adam, _MOMENTS),
    TableOptimizer("sgd", (torch.optim.SGD, {}), _sgd, {}),
    TableOptimizer(
        "adagrad", (torch.optim.Adagrad, {"eps": EPSILON}), _adagrad, {"sum": False}, ("momentum1",)
    ),
    TableOptimizer(
        "rowwise_adagrad",
        (RowWiseAdagrad, {"eps": EPSILON}),
        _rowwise_adagrad,
        {"sum": True},
        ("momentum1",),
    ),
    TableOptimizer(
        "fused_adam", (torch.optim.Adam, {}), None, _MOMENTS, ("momentum1", "exp_avg_sq"), _GPU, "adam"
    ),
    TableOptimizer("lamb", (LAMB, {}), None, _MOMENTS, ("momentum1", "exp_avg_sq"), _GPU, "adam"),
    TableOptimizer(
        "partial_rowwise_adam",
        (PartialRowWiseAdam, {}),
        None,
        {"exp_avg": False, "exp_avg_sq": True},
        ("momentum1", "exp_avg_sq"),
        _GPU,
        "rowwise_adagrad",
    ),
):
    register_table_optimizer(_table_optimizer)


def table_optimizer_of(settings: OptimizerSettings) -> TableOptimizer:
    """Returns the table optimizer in `optimizer.tables`."""
    return TABLE_OPTIMIZER_OF_NAME[settings.tables]
