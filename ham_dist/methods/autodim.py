"""AutoDim: one of several candidate dims for each field, by a Gumbel-softmax over them.

Shape letters: F fields, K candidates, S columns under search.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field

from ham_dist.config.base import PositiveFloat, PositiveInt
from ham_dist.config.schema import MethodSettings
from ham_dist.errors import ConfigError, TargetError
from ham_dist.methods.knapsack import best_options
from ham_dist.methods.method import MaskLoss, Method, SearchSpace
from ham_dist.methods.soft import uniform


class AutoDimSettings(MethodSettings):
    """AutoDim: one of `model.candidates` for each field."""

    name: Literal["autodim"] = "autodim"
    alpha_learning_rate: PositiveFloat = 1e-3
    """Learning rate of SGD on the logits of the candidates."""
    alpha_every: PositiveInt = 1
    """Training steps per step on the logits."""
    temperature_decay: Annotated[float, Field(ge=0)] = 5e-5
    """The temperature at step t is max(0.01, 1 - temperature_decay * t)."""
    choice: Literal["budget", "discrete"] = "budget"
    """`budget`: the candidates with the highest total log probability that fit into the target. `discrete`:
    the most probable candidate of each field, as published; the target is not used."""


LOWEST_TEMPERATURE = 0.01


class AutoDim(Method):
    """Learns logits of the candidates of each field, and mixes the candidates by a Gumbel-softmax.

    The mask over a candidate's columns is its weight in the mixture. Steps on the logits are first order, on
    validation batches, with SGD. Differences from the paper: a search starts from a pretrained supernet in
    which all candidates have equal weight; the logits are the parameters themselves, not the output of a
    softmax with a parameter of its own; and the choice can be made under a budget.

    Attributes:
        logits: (F, K) float32.
        steps: Steps taken, (1,) int64; with the seed, it determines the noise, the same on all ranks.
    Source: Zhao et al., "AutoDim: Field-aware embedding dimension search in recommender systems" (2021),
        Eq. 5 to 9 and Algorithm 1.
    """

    Settings = AutoDimSettings
    settings: AutoDimSettings
    chooses_bands = True

    def __init__(self, space: SearchSpace, settings: AutoDimSettings) -> None:
        super().__init__(space, settings)
        if space.bands is None:
            raise ConfigError(
                'search.method = "autodim": the model has no candidate dims to choose from.\n'
                "  Set model.candidates, for example to [2, 4, 8]."
            )
        self._bands = {
            table: [slice(part.start + band.start, part.start + band.stop) for band in space.bands[table]]
            for table, part in space.layout.slices.items()
        }
        counts = {len(bands) for bands in self._bands.values()}
        assert len(counts) == 1, "every field has the same candidates"
        self.logits = torch.zeros(len(self._bands), counts.pop(), device=space.device)
        self.steps = torch.zeros(1, dtype=torch.int64)
        self._sizes = torch.tensor(
            [band.stop - band.start for bands in self._bands.values() for band in bands], device=space.device
        )
        costs = space.budget.costs
        self._costs = [[int(costs[band].sum()) for band in bands] for bands in self._bands.values()]
        least = sum(min(group) for group in self._costs)
        if settings.choice == "budget" and least > space.budget.limit:
            raise TargetError(
                f"search.targets: {space.budget.unit} = {space.budget.limit}: below the {least} that the "
                "smallest candidate of every field takes.\n"
                "  Raise the target, or add a smaller candidate to model.candidates."
            )

    @property
    def every(self) -> int:
        """The setting `alpha_every`."""
        return self.settings.alpha_every

    @property
    def temperature(self) -> float:
        """Temperature of the softmax, which falls from 1 during the search."""
        return max(LOWEST_TEMPERATURE, 1.0 - self.settings.temperature_decay * float(self.steps))

    def mask(self) -> torch.Tensor:
        """Returns each candidate's weight, drawn for every step, on all of its columns: (S,)."""
        return self._spread(self._weights(self.logits))

    def used(self) -> int:
        """Returns the cost of the most probable candidates."""
        return self.space.budget.used(self._chosen(self.logits.argmax(dim=1).tolist()))

    def near(self) -> bool:
        """Returns True: the mixture is of no size, and each choice is evaluated by itself."""
        return True

    def step(self, loss: MaskLoss) -> None:
        """logits <- logits - eta dL/dlogits, through the mixture at the current noise."""
        with torch.enable_grad():
            logits = self.logits.clone().requires_grad_()
            mask = self._spread(self._weights(logits))
            gradient = loss.gradient_at(mask.detach()).to(mask.device)
            (of_logits,) = torch.autograd.grad(mask, logits, gradient)
        self.logits -= self.settings.alpha_learning_rate * of_logits
        self.steps += 1

    def choice(self) -> torch.Tensor:
        """Returns the columns of one candidate of each field."""
        if self.settings.choice == "discrete":
            return self._chosen(self.logits.argmax(dim=1).tolist())
        scores = self.logits.log_softmax(dim=1).tolist()
        options = best_options(scores, self._costs, self.space.budget.limit)
        assert options is not None, "the smallest candidates fit, as checked at the start"
        return self._chosen(options)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the logits and the number of steps."""
        return {"logits": self.logits, "steps": self.steps}

    def _weights(self, logits: torch.Tensor) -> torch.Tensor:
        """Gumbel-softmax, (F, K)."""
        drawn = uniform(self.space, self.settings.name, int(self.steps), *logits.shape).clamp_(min=1e-20)
        noise = -(-drawn.log()).clamp_(min=1e-20).log()
        return torch.softmax((logits.log_softmax(dim=1) + noise) / self.temperature, dim=1)

    def _spread(self, weights: torch.Tensor) -> torch.Tensor:
        """The weight of each candidate on all of its columns, (S,)."""
        return weights.flatten().repeat_interleave(self._sizes)

    def _chosen(self, options: list[int]) -> torch.Tensor:
        mask = torch.zeros(self.space.layout.size)
        for bands, option in zip(self._bands.values(), options, strict=True):
            mask[bands[option]] = 1.0
        return mask
