"""How weights move: Adam over the dense weights (and over tables of the dense kernel), or tables that step inside the backward pass."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from ham_dist.config.schema import OptimizerSettings
from ham_dist.distributed.rounding import GRADIENT_BITS, rounded
from ham_dist.distributed.sharding import FusedRule, ShardedModel

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's state of a weight, each of the weight's shape."""


def fused_rule(settings: OptimizerSettings) -> FusedRule | None:
    """What the fused kernels are to apply, or None where tables are trained by Adam through the dense kernel (fused Adam exists on GPU only)."""
    if settings.tables == "adam":
        return None
    return FusedRule(RowWiseAdagrad, {"lr": settings.tables_learning_rate})


class Optimizers:
    """All optimizers of one model behind one zero_grad and one step.

    Under a fused rule the tables have stepped by the time backward() returns, and `step` moves the dense weights alone.
    """

    def __init__(self, model: ShardedModel, dense: Iterable[nn.Parameter], settings: OptimizerSettings) -> None:
        self.model = model
        self._dense = list(dense)
        groups: list[dict[str, Any]] = [{"params": self._dense, "lr": settings.learning_rate}]
        tables = [local.parameter for _, local in model.local_by_key() if local.parameter is not None]
        if tables:
            groups.append({"params": tables, "lr": settings.tables_learning_rate})
        self.adam = torch.optim.Adam(groups, fused=True)
        self._steps = 0

    def zero_grad(self) -> None:
        """Forget the gradients of the step before."""
        self.adam.zero_grad()

    def step(self) -> None:
        """Move every weight that the backward pass has not moved yet."""
        for parameter in self._dense:
            if parameter.dtype == torch.float64 and parameter.grad is not None:
                parameter.grad.copy_(rounded(parameter.grad, GRADIENT_BITS))
        self.adam.step()
        self._steps += 1

    def open_state(self) -> None:
        """Make the state that a first step would make (zeros), so that a checkpoint or a wider model's state can be loaded into it."""
        for parameter in self._parameters():
            if not self.adam.state[parameter]:
                self.adam.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    **{moment: torch.zeros_like(parameter, memory_format=torch.preserve_format).detach() for moment in MOMENTS},
                }

    def moments(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """Adam's two moments of `parameter`, by name; the live tensors."""
        return {moment: self.adam.state[parameter][moment] for moment in MOMENTS}

    @property
    def steps(self) -> int:
        """Steps taken; the same for every weight. Setting it needs `open_state` first."""
        return self._steps

    @steps.setter
    def steps(self, count: int) -> None:
        self._steps = count
        for state in self.adam.state.values():
            state["step"].fill_(count)

    def fused_tensors(self) -> dict[str, Any]:
        """The fused kernels' own state of every table, as ShardedTensors named without regard to ranks; empty under the dense kernel."""
        tensors = {}
        if self.model.fused:
            for name, state in self.model.parallel.fused_optimizer.state_dict()["state"].items():
                for key, values in state.items():
                    tensors[f"fused/{name}/{key.rpartition('.')[2]}"] = values
        return tensors

    def fused_rows(self) -> dict[str, torch.Tensor]:
        """This rank's part of `fused_tensors`: the live tensors, (rows here,)."""
        return {name: shard.tensor for name, values in self.fused_tensors().items() for shard in values.local_shards()}

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self.adam.param_groups:
            yield from group["params"]
