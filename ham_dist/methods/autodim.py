"""AutoDim: one of several candidate dims for each field, by a Gumbel-softmax over them.

Shape letters: F fields, K candidates (of a field with fewer, the places at the end are unused), S columns
under search.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field

from ham_dist.config.base import AscendingInts, PositiveFloat, PositiveInt
from ham_dist.config.schema import MethodSettings
from ham_dist.errors import ConfigError, TargetError
from ham_dist.methods.knapsack import best_options
from ham_dist.methods.method import MaskLoss, Method, SearchSpace
from ham_dist.methods.soft import uniform


class AutoDimSettings(MethodSettings):
    """AutoDim: one of several candidate dims for each field."""

    name: Literal["autodim"] = "autodim"
    prefixes: Annotated[AscendingInts, Field(max_length=16)] = ()
    """Candidate dims that share one table: each candidate is the table's first columns, without a linear map
    and BatchNorm of its own. Empty: `model.candidates`, each with a table of its own, as published."""
    alpha_learning_rate: PositiveFloat = 1e-3
    """Learning rate of SGD on the logits of the candidates."""
    alpha_every: PositiveInt = 1
    """Training steps per step on the logits."""
    temperature_decay: Annotated[float, Field(ge=0)] = 5e-5
    """The temperature at step t is max(0.01, 1 - temperature_decay * t)."""
    choice: Literal["budget", "discrete"] = "budget"
    """`budget`: the candidates with the highest total log probability among those that use the whole target
    (of bytes, 99 %), or if none do, as much of it as possible. `discrete`: the most probable candidate of
    each field, as published; the target is not used."""


LOWEST_TEMPERATURE = 0.01


class AutoDim(Method):
    """Learns logits of the candidates of each field, and mixes the candidates by a Gumbel-softmax.

    The mask over a candidate's columns is its weight in the mixture; of nested candidates, the mask over a
    column is the sum of the weights of those that have it. Steps on the logits are first order, on
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
        self._options = [
            [slice(part.start + option.start, part.start + option.stop) for option in options]
            for part, options in zip(space.layout.slices.values(), self._candidates(), strict=True)
        ]
        most = max(map(len, self._options))
        self.logits = torch.zeros(len(self._options), most, device=space.device)
        self.steps = torch.zeros(1, dtype=torch.int64)
        unused, members = (
            torch.ones(len(self._options), most),
            torch.zeros(len(self._options), most, space.layout.size),
        )
        for field, options in enumerate(self._options):
            for number, option in enumerate(options):
                unused[field, number] = 0.0
                members[field, number, option] = 1.0
        self._unused = unused.bool().to(space.device)
        self._members = members.flatten(0, 1).to(space.device)
        costs = space.budget.costs
        self._costs = [[int(costs[option].sum()) for option in options] for options in self._options]
        least = sum(min(group) for group in self._costs)
        if settings.choice == "budget" and least > space.budget.limit:
            raise TargetError(
                f"search.targets: {space.budget.unit} = {space.budget.limit}: below the {least} that the "
                "smallest candidate of every field takes.\n"
                "  Raise the target, or add a smaller candidate to model.candidates."
            )

    def _candidates(self) -> list[list[slice]]:
        """The candidates of each field, as columns of its table."""
        prefixes, bands = self.settings.prefixes, self.space.bands
        if bands is None and not prefixes:
            raise ConfigError(
                'search.method = "autodim": there are no candidate dims to choose from.\n'
                "  Set model.candidates for candidates with a table each, or search.method.prefixes for "
                "nested ones, for example to [2, 4, 8]."
            )
        if bands is not None and prefixes:
            raise ConfigError(
                f"search.method.prefixes = {list(prefixes)}: the model has candidates with a table each.\n"
                "  Leave out model.candidates or search.method.prefixes."
            )
        if bands is not None:
            return [list(bands[table]) for table in self.space.layout.slices]
        return [
            [slice(0, dim) for dim in sorted({min(prefix, columns) for prefix in prefixes})]
            for columns in self.space.layout.dims.values()
        ]

    @property
    def every(self) -> int:
        """The setting `alpha_every`."""
        return self.settings.alpha_every

    @property
    def temperature(self) -> float:
        """Temperature of the softmax, which falls from 1 during the search."""
        return max(LOWEST_TEMPERATURE, 1.0 - self.settings.temperature_decay * float(self.steps))

    def mask(self) -> torch.Tensor:
        """Returns each candidate's weight, drawn for every step, summed on its columns: (S,)."""
        return self._spread(self._weights(self.logits))

    def used(self) -> int:
        """Returns the cost of the most probable candidates."""
        return self.space.budget.used(
            self._chosen(self._log_probabilities(self.logits).argmax(dim=1).tolist())
        )

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
            return self._chosen(self._log_probabilities(self.logits).argmax(dim=1).tolist())
        scores = [
            of_field[: len(options)]
            for of_field, options in zip(
                self._log_probabilities(self.logits).tolist(), self._options, strict=True
            )
        ]
        budget = self.space.budget
        options = best_options(scores, self._costs, budget.limit, budget.full)
        assert options is not None, "the smallest candidates fit, as checked at the start"
        return self._chosen(options)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the logits and the number of steps."""
        return {"logits": self.logits, "steps": self.steps}

    def _weights(self, logits: torch.Tensor) -> torch.Tensor:
        """Gumbel-softmax, (F, K)."""
        drawn = uniform(self.space, self.settings.name, int(self.steps), *logits.shape).clamp_(min=1e-20)
        noise = -(-drawn.log()).clamp_(min=1e-20).log()
        return torch.softmax((self._log_probabilities(logits) + noise) / self.temperature, dim=1)

    def _log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Logarithms of the candidates' probabilities, (F, K); -inf in unused places."""
        return logits.masked_fill(self._unused, -torch.inf).log_softmax(dim=1)

    def _spread(self, weights: torch.Tensor) -> torch.Tensor:
        """The weight of each candidate, summed on its columns, (S,)."""
        return weights.flatten() @ self._members

    def _chosen(self, options: list[int]) -> torch.Tensor:
        mask = torch.zeros(self.space.layout.size)
        for of_field, option in zip(self._options, options, strict=True):
            mask[of_field[option]] = 1.0
        return mask
