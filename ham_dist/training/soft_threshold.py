"""Tables under learned soft thresholds, in training."""

from typing import Any

import torch

from ham_dist.distributed.sharding.local_table import LocalTable
from ham_dist.distributed.sharding.model import TABLES, ShardedModel
from ham_dist.distributed.sharding.thresholds import Granularity, Thresholds
from ham_dist.errors import ShardingError
from ham_dist.training.transform import ReplacedTables, ZeroPattern


class SoftThresholding(ReplacedTables):
    """Lookups read S(V, s); Adam moves V by the gradient of S, and s with an optimizer of its own.

    Args:
        model: The tables.
        granularity: Numbers that share a threshold.
        start: Initial value of s.
        learning_rate: Learning rate of Adam on s.
        weight_decay: Coupled L2 of s.
    Raises:
        ShardingError: The table optimizer is fused into the backward pass.
    Source: Liu et al., "Learnable embedding sizes for recommender systems" (PEP, 2021), section 3.
    """

    def __init__(
        self,
        model: ShardedModel,
        granularity: Granularity,
        start: float,
        *,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        if model.table_optimizer.fused is not None:
            raise ShardingError(
                'search.method = "pep": thresholds need the gradient of whole tables, but the table '
                "optimizer is fused into the backward pass.\n"
                '  Set optimizer.tables = "adam".'
            )
        super().__init__(model)
        self.thresholds = Thresholds(model, granularity, start)
        self._parameters = [self.thresholds.shared, *self.thresholds.own.values()]
        self._adam = torch.optim.Adam(
            [torch.nn.Parameter(values) for values in self._parameters],
            lr=learning_rate,
            weight_decay=weight_decay,
        )
        self.steps = torch.zeros((), dtype=torch.int64)
        for parameter in self._parameters_of_adam:  # created here, so that a checkpoint can be loaded into it
            self._adam.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def values_of(self, field: str, local: LocalTable) -> torch.Tensor:
        return self.thresholds.applied_to(field, local, local.columns)

    @torch.no_grad()
    def after_backward(self) -> None:
        signs: dict[str, torch.Tensor] = {}
        for field, local in self.model.local.items():
            assert local.parameter is not None
            assert local.parameter.grad is not None
            gradient = local.parameter.grad[:, : local.columns.shape[1]]
            gradient.mul_(local.columns != 0)
            signs[field] = -gradient * torch.sign(self.before[field])
        shared, own = self.thresholds.gradients(signs)
        for parameter, values in zip(self._parameters_of_adam, [shared, *own.values()], strict=True):
            parameter.grad = values
        self.put_back()

    def after_step(self) -> None:
        for state in self._adam.state.values():
            state["step"].fill_(int(self.steps))
        self._adam.step()
        self.steps += 1

    def finish(self) -> ZeroPattern:
        """Replaces the tables by S(V, s) for good, and returns the pattern of their zeros."""
        self.replace_for_good()
        return ZeroPattern.of(self.model)

    def tensors(self) -> dict[str, Any]:
        """Returns s and its moments, for checkpoints; sharded as the tables are for one threshold each."""
        names = ("s", "exp_avg", "exp_avg_sq")
        states = [self._adam.state[parameter] for parameter in self._parameters_of_adam]
        found: dict[str, Any] = {"steps": self.steps}
        if len(self.thresholds.shared):
            values = (self.thresholds.shared, *(states[0][name] for name in names[1:]))
            found |= {f"thresholds/{name}": tensor for name, tensor in zip(names, values, strict=True)}
        if self.thresholds.granularity == "element":
            own = dict(zip(self.thresholds.own, states[1:], strict=True))
            for field in self.model.plan.groups[TABLES]:
                local = {"s": self.thresholds.own.get(field), **own.get(field, {})}
                found |= {
                    f"thresholds/{field}/{name}": self.model.tensor_like(
                        f"{TABLES}/{field}", local.get(name), torch.float32
                    )
                    for name in names
                }
        return found

    @property
    def _parameters_of_adam(self) -> list[torch.nn.Parameter]:
        (group,) = self._adam.param_groups
        parameters: list[torch.nn.Parameter] = group["params"]
        return parameters
