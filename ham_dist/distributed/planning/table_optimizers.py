"""How tables may move: each value of `optimizer.tables`, what keeps its state, and where it exists."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torchrec.optim.optimizers import LAMB, PartialRowWiseAdam
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from ham_dist.config.schema import TABLE_OPTIMIZERS, ComputeKernel, OptimizerSettings, TablePrecision
from ham_dist.embedding.tables import BYTES_PER_NUMBER
from ham_dist.errors import BackendError, ConfigError

EPSILON = 1e-8
"""Added to the root in Adagrad's rules: fbgemm's default, given to all kernels alike so that a table moves alike under each."""

ADAM_DECAY = 0.999
"""Beta 2 of Adam's rules: torch's and fbgemm's default."""

OpenOptimizer = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]


SLOT_BYTES, INDEX_BYTES = 16, 4
"""Of a cached table on the GPU, beside the rows in the cache: which row lies in each place and when it was used, and for each row of the table its
number (fbgemm_gpu/split_table_batched_embeddings_ops_training.py, _apply_cache_state)."""


@dataclass(frozen=True)
class Memory:
    """The memory that holds a table.

    Attributes:
        kernel: As in `sharding.compute_kernel`.
        cache_load_factor: Share of its rows in the cache on the GPU, under `fused_uvm_caching`.
    """

    kernel: ComputeKernel
    cache_load_factor: float = 0.0


DEVICE = Memory("device")


class BytesHeld(NamedTuple):
    """Bytes of a shard of a table: on the device its numbers (or its cache), and what training keeps beside them; on the host all that lies there."""

    tables: int
    training_state: int
    host: int = 0

    @property
    def device(self) -> int:
        """All that lies on the device."""
        return self.tables + self.training_state

    def plus(self, other: "BytesHeld") -> "BytesHeld":
        """What both take together."""
        return BytesHeld(
            self.tables + other.tables, self.training_state + other.training_state, self.host + other.host
        )


@dataclass(frozen=True)
class TableOptimizer:
    """One rule for moving tables.

    name:        as in `optimizer.tables`.
    fused:       the class that tells TorchRec's fused kernels of it, and its options but for the learning rate; None: the dense kernel, where every
                 table gets a gradient and `dense` moves it.
    dense:       the same rule over parameters with a gradient, as data-parallel tables are; None where there is no such optimizer.
    states:      name of each thing it remembers, and whether that is one number a row (else one for each number of the table).
    kernel_keys: TorchRec's names of the same things in the fused kernels' state.
    devices:     where its fused kernel exists.
    nearest:     the rule to take where it does not.
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
        """Whether it computes one number from all columns of a row, and so is another rule for a table whose columns are apart."""
        return any(self.states.values()) or self.name == "lamb"

    @property
    def state_bytes_per_number(self) -> int:
        """Of what it remembers for each number of a table."""
        return sum(not of_row for of_row in self.states.values()) * BYTES_PER_NUMBER

    @property
    def passes(self) -> int:
        """How often its kernel goes through a row that it moves, and through the row's state: LAMB's for the length of the step, and then to take it
        (fbgemm_gpu/codegen/genscript/optimizers.py, split_precomputation)."""
        return 2 if self.name == "lamb" else 1

    def require(self, device: str, precision: TablePrecision = "float32") -> None:
        """Refuse a rule whose kernel does not exist on `device` ("cpu" or "cuda"), or not for tables of `precision`.

        raises: BackendError that names the nearest rule or precision that does.
        """
        if device not in self.devices:
            raise BackendError(
                f'optimizer.tables = "{self.name}": its kernel exists on {" and ".join(self.devices)} only, and this run is on {device}.\n'
                f'  Set optimizer.tables = "{self.nearest}", the nearest that exists here.'
            )
        if precision != "float32" and self.fused is None:
            nearest = (
                '"fused_adam", or "rowwise_adagrad"' if device == "cuda" else '"rowwise_adagrad" or "adagrad"'
            )
            raise BackendError(
                f'precision.tables = "{precision}": optimizer.tables = "{self.name}" would have gradients and moments of {precision} too, in which '
                "most squares of gradients are 0, and divide by them.\n"
                f'  Set optimizer.tables = {nearest}, the nearest that keep float32 beside such tables; or precision.tables = "float32".'
            )
        if precision == "bfloat16" and device == "cpu":
            raise BackendError(
                'precision.tables = "bfloat16": its kernels exist on cuda only, and this run is on cpu.\n'
                '  Set precision.tables = "float16", the nearest that exists here.'
            )

    def bytes_of(
        self, rows: int, numbers: int, *, fused: bool, number_bytes: int, memory: Memory = DEVICE
    ) -> BytesHeld:
        """Bytes of a shard of a table, and of what training keeps beside it: the optimizer's state, and the gradient where it has one.

        numbers:      in these rows.
        number_bytes: of the table; what the rule remembers is float32.
        memory:       of the table. fbgemm puts state of one number a row on the device all the same (construct_split_state). Tables looked up
                      together share a cache, whose places are as wide as the widest of them: that is left out.
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
        """What the rule divides a gradient by, if the same came in every one of the `steps` steps beside those that it remembers.

        states:   of the rows of `gradient`, by name: of its shape, or (..., rows, 1) where the rule keeps one number a row.
        gradient: (..., rows, columns).
        returns:  of the shape of `gradient` or (..., rows, 1); 1 under plain descent. LAMB's trust ratio is left out.
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
"""All table optimizers, built-in ones and those of plug-ins, by name."""


def register_table_optimizer(table_optimizer: TableOptimizer) -> None:
    """Makes a table optimizer available as `optimizer.tables`.

    Raises:
        ConfigError: Its name is another one's.
    """
    if table_optimizer.name in TABLE_OPTIMIZER_OF_NAME:
        raise ConfigError(
            f"optimizer.tables = {table_optimizer.name!r} is there already. Give it another name."
        )
    TABLE_OPTIMIZER_OF_NAME[table_optimizer.name] = table_optimizer
    if table_optimizer.name not in TABLE_OPTIMIZERS:
        TABLE_OPTIMIZERS.append(table_optimizer.name)


# Fused Adam, LAMB and partial row-wise Adam fail on fbgemm's CPU build ("is not supported in CPU mode").
for _rule in (
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
    register_table_optimizer(_rule)


def table_optimizer_of(settings: OptimizerSettings) -> TableOptimizer:
    """The rule that `optimizer.tables` names."""
    return TABLE_OPTIMIZER_OF_NAME[settings.tables]
