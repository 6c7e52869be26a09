"""Optimizers of a run: Adam for dense weights, the table optimizer after or inside the backward pass."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ham_dist.config.schema import OptimizerSettings
from ham_dist.distributed.ranks.rounding import GRADIENT_BITS, rounded
from ham_dist.distributed.sharding.model import TABLES, ShardedModel
from ham_dist.io.huge_pages import keep_freed_memory

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of Adam's state tensors; each has its weight's shape."""


class Optimizers:
    """All optimizers of one model behind one zero_grad and one step.

    Tables in fused kernels are updated inside backward(). `step` updates the dense weights, and the tables
    that have a gradient: all of them under Adam, the data-parallel ones under a fused table optimizer
    (TorchRec silently applies no fused optimizer to those).
    """

    def __init__(
        self, model: ShardedModel, dense: Iterable[nn.Parameter], settings: OptimizerSettings
    ) -> None:
        keep_freed_memory()  # every step allocates and frees the same blocks, some as large as a table
        self.model = model
        self._dense = list(dense)
        self._tables = {
            key: local.parameter
            for key, _ in model.placements()
            if (local := model.local_table(key)) and local.parameter is not None
        }
        self.adam = torch.optim.Adam(self._dense, lr=settings.learning_rate, fused=True)
        self.of_tables: torch.optim.Optimizer | None = None
        if self._tables:
            assert model.table_optimizer.dense is not None, (
                "the plan puts no table of such an optimizer outside the fused kernels"
            )
            tables: Iterable[Any] = self._tables.values()
            if settings.tables_weight_decay:
                tables = _groups(self._tables, settings.tables_weight_decay)
            self.of_tables = model.table_optimizer.dense(tables, settings.tables_learning_rate)
        self._steps = 0

    def zero_grad(self) -> None:
        """Clear the gradients of the previous step."""
        for optimizer in self._all:
            optimizer.zero_grad()

    def step(self) -> None:
        """Update every weight that the backward pass has not updated."""
        for parameter in self._dense:
            if parameter.dtype == torch.float64 and parameter.grad is not None:
                parameter.grad.copy_(rounded(parameter.grad, GRADIENT_BITS))
        for optimizer in self._all:
            optimizer.step()
        self._steps += 1

    def open_state(self) -> None:
        """Create the state that a first step would create (zeros).

        A checkpoint, or the state of a wider model, can then be loaded into it.
        """
        for optimizer in self._all:
            if not isinstance(optimizer, torch.optim.Adam):
                continue  # other optimizers create their state in their constructor
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if not optimizer.state[parameter]:
                        optimizer.state[parameter] = {
                            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                            **{
                                moment: torch.zeros_like(
                                    parameter, memory_format=torch.preserve_format
                                ).detach()
                                for moment in MOMENTS
                            },
                        }

    def moments(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """Returns Adam's two moments of a dense weight, by name; not copies. Call `open_state` first."""
        return {moment: self.adam.state[parameter][moment] for moment in MOMENTS}

    def table_states(self) -> dict[str, dict[str, torch.Tensor]]:
        """Returns the table optimizer's state of this rank's parts; not copies. Call `open_state` first.

        Returns:
            State tensors by table (as in `ShardedModel.placements`) and name: (rows, stored columns) of the
            part, or (rows,) if the optimizer keeps one number per row.
        """
        states = self.model.kernel_state()
        for key, parameter in self._tables.items():
            assert self.of_tables is not None
            found = self.of_tables.state[parameter]
            states[key] = {
                name: found[name].view(-1) if of_row else found[name]
                for name, of_row in self.model.table_optimizer.states.items()
            }
        return states

    def set_rates(self, *, tables: float, dense: float) -> None:
        """Set the learning rates of the tables, none of which is in a fused kernel, and the dense weights."""
        assert self.of_tables is not None, "a fused kernel has its own learning rate"
        for optimizer, rate in ((self.of_tables, tables), (self.adam, dense)):
            for group in optimizer.param_groups:
                group["lr"] = rate

    @property
    def steps(self) -> int:
        """Number of steps taken, the same for every weight. Call `open_state` before setting it."""
        return self._steps

    @steps.setter
    def steps(self, count: int) -> None:
        self._steps = count
        for optimizer in self._all:
            for state in optimizer.state.values():
                if "step" in state:
                    state["step"].fill_(count)

    @property
    def _all(self) -> list[torch.optim.Optimizer]:
        return [self.adam] if self.of_tables is None else [self.adam, self.of_tables]


def _groups(tables: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of tables by name in which those under search decay.

    First-order tables do not: no orthogonality acts on them either, and the decay can replace it.
    """
    groups: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []}
    for key, parameter in tables.items():
        groups[weight_decay if key.startswith(f"{TABLES}/") else 0.0].append(parameter)
    return [{"params": group, "weight_decay": decay} for decay, group in groups.items() if group]
