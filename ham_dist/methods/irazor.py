"""i-Razor: a softmax over disjoint bands of columns in each table (Yao et al., i-Razor, 2022)."""

from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field

from ham_dist.config.base import AscendingInts, PositiveFloat
from ham_dist.config.schema import MethodSettings
from ham_dist.methods.fill import best_within
from ham_dist.methods.method import MaskLoss, SearchSpace
from ham_dist.methods.soft import SoftMethod

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's constants, those of torch and TensorFlow."""


class IRazorSettings(MethodSettings):
    """i-Razor: a softmax over disjoint bands of columns in each table."""

    name: Literal["irazor"] = "irazor"
    bands: Annotated[AscendingInts, Field(min_length=1)] = (1, 2, 4, 8, 16)
    """Last columns of the bands, cut to each table's dim: 1, 2, 4 means column 1, column 2, columns 3 and 4.
    In a table with more columns, one more band has the rest. The authors' last band ends at 30, their dim."""
    temperature: PositiveFloat = 0.05
    """Temperature of the softmax (authors' code)."""
    alpha_learning_rate: PositiveFloat = 1e-3
    """Learning rate of Adam on the logits. The authors use one Adam for logits and weights, at 1e-2 in their
    script; the default is the rate of the weights in the HAM paper (section 4.3)."""
    penalty: Annotated[float, Field(ge=0)] = 1e-6
    """Weight of the expected number of columns in the loss (authors' code: 1e-4 times 0.01 per field)."""
    fit: Literal["budget", "probability"] = "budget"
    """`budget`: the bands with the largest sum of probabilities among those that meet the target exactly.
    `probability`: as the authors do, for each table the most probable bands until the sum of their
    probabilities exceeds `threshold`; the size is the method's own, and the target is not met."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Used by `fit = "probability"` only. The authors' code prints the sizes for several, from 0.1 to 0.8."""


class IRazor(SoftMethod):
    """Each table's mask: softmax(alpha / temperature) over its bands; a column's factor is that of its band.

    The first band of each table has no columns: its probability is what the table does without. Alpha is
    learned by Adam on training batches, with a penalty on the expected number of columns. The kept columns
    are multiplied by their factor when they are sliced.

    The authors' code differs: it trains alpha and weights from scratch in one step of one optimizer, where
    the search here starts from the pretrained supernet and alternates; it keeps the size of the chosen bands
    only, and retrains from scratch (the setting for that is in [retrain]); its BatchNorm on the embeddings,
    called without a training mode, scales nothing and is left out. An exact budget is an addition.
    Source: Yao et al., i-Razor: A Differentiable Neural Input Razor for Feature Selection and Dimension
    Search in DNN-Based Recommender Systems, arXiv 2204.00281 (code: YaoYao1995/i-Razor, irazor_models.py).

    Attributes:
        alpha: Logits of the bands, (F, K) float32 on CPU: F tables, at most K bands each; unused places
            are 0.
    """

    Settings = IRazorSettings
    settings: IRazorSettings

    def __init__(self, space: SearchSpace, settings: IRazorSettings) -> None:
        super().__init__(space, settings)
        self._bands = [_bands(dim, settings.bands) for dim in space.layout.dims.values()]
        most = max(map(len, self._bands))
        self._is_band = torch.zeros(len(self._bands), most, dtype=torch.bool)
        self._widths = torch.zeros(len(self._bands), most)
        place_of_column = torch.empty(space.layout.size, dtype=torch.int64)
        for table, (part, bands) in enumerate(zip(space.layout.slices.values(), self._bands, strict=True)):
            for number, band in enumerate(bands):
                self._is_band[table, number] = True
                self._widths[table, number] = len(band)
                place_of_column[part][band.start : band.stop] = table * most + number
        self._place_of_column = place_of_column
        self.alpha = torch.zeros(len(self._bands), most)
        self._mean, self._square = torch.zeros_like(self.alpha), torch.zeros_like(self.alpha)
        self._steps = torch.zeros((), dtype=torch.int64)

    @property
    def batches(self) -> Literal["validation", "training"]:
        """Training batches, as in the authors' code."""
        return "training"

    def probabilities(self) -> torch.Tensor:
        """Returns the probability of each band, (F, K); 0 in unused places."""
        logits = self.alpha / self.settings.temperature
        return torch.softmax(logits.masked_fill(~self._is_band, -torch.inf), dim=1)

    def expected(self) -> torch.Tensor:
        """Returns the probability of each column's band, (S,)."""
        return self.probabilities().flatten()[self._place_of_column]

    def mask(self) -> torch.Tensor:
        """Returns the probability of each column's band, (S,) float32."""
        return self.expected().to(self.space.device)

    def step(self, loss: MaskLoss) -> None:
        """One step of Adam on alpha, along the gradient of L + penalty * (expected number of columns)."""
        probabilities = self.probabilities()
        # Summed on the CPU, in the order of the columns: on a GPU the order, and so the sum, would vary.
        of_columns = loss.gradient_at(self.mask()).cpu()
        of_bands = torch.zeros(self.alpha.numel()).index_add_(0, self._place_of_column, of_columns)
        of_bands = of_bands.view_as(self.alpha) + self.settings.penalty * self._widths
        mean = (probabilities * of_bands).sum(dim=1, keepdim=True)
        self._adam(probabilities * (of_bands - mean) / self.settings.temperature)

    def choice(self) -> torch.Tensor:
        """Returns the bands chosen as `fit` sets; a whole budget may need a part of one more band."""
        kept = self._within_budget() if self.settings.fit == "budget" else self._most_probable()
        open_columns = kept.flatten()[self._place_of_column].float()
        if self.settings.fit == "probability":
            return open_columns
        # Where no bands meet the target exactly, single columns of the most probable bands left fill it up.
        return self.space.budget.best(2 * open_columns + self.expected())

    def fold(self) -> torch.Tensor:
        """Returns the probability of each column's band."""
        return self.mask()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns alpha and Adam's state."""
        return {"alpha": self.alpha, "mean": self._mean, "square": self._square, "steps": self._steps}

    def logged(self) -> dict[str, torch.Tensor]:
        """Returns alpha."""
        return {"alpha": self.alpha}

    def _adam(self, gradient: torch.Tensor) -> None:
        self._steps += 1
        for moment, value, beta in zip(
            (self._mean, self._square), (gradient, gradient.square()), BETAS, strict=True
        ):
            moment.lerp_(value, 1 - beta)
        steps = int(self._steps)
        mean, square = (
            moment / (1 - beta**steps) for moment, beta in zip((self._mean, self._square), BETAS, strict=True)
        )
        self.alpha -= self.settings.alpha_learning_rate * mean / (square.sqrt() + EPSILON)

    def _within_budget(self) -> torch.Tensor:
        """Bands with the largest sum of probabilities that use the whole limit (of bytes, 99 %), (F, K) bool.

        Where no bands do, those with the largest sum that fit into it.
        """
        budget, probabilities = self.space.budget, self.probabilities()
        costs = torch.zeros(self.alpha.numel(), dtype=torch.int64).index_add_(
            0, self._place_of_column, budget.costs
        )
        sized, limit = costs > 0, budget.limit
        values, prices = probabilities.flatten().double()[sized], costs[sized]
        chosen = best_within(values, prices, budget.full, limit)
        if chosen is None:
            chosen = best_within(values, prices, 0, limit)
        kept = torch.zeros(self.alpha.numel(), dtype=torch.bool)
        if chosen is not None:
            kept[sized] = chosen
        return kept.view_as(self.alpha)

    def _most_probable(self) -> torch.Tensor:
        """Kept bands, (F, K) bool; if none of them has a column, the most probable band that has one."""
        probabilities = self.probabilities()
        ordered, order = torch.sort(probabilities, dim=1, descending=True, stable=True)
        before = ordered.cumsum(dim=1) - ordered
        kept = torch.zeros_like(self._is_band).scatter_(1, order, before <= self.settings.threshold)
        kept &= self._widths > 0
        if not kept.any():
            kept.view(-1)[(probabilities * (self._widths > 0)).argmax()] = True
        return kept


def _bands(dim: int, ends: tuple[int, ...]) -> list[range]:
    """Returns the columns of each band of a table with `dim` columns; the first band is empty."""
    return [
        range(0),
        *(range(start, end) for start, end in pairwise([0, *(end for end in ends if end < dim), dim])),
    ]
