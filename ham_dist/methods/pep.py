"""PEP: unstructured pruning by learned soft thresholds.

Shape letter: S columns under search.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field

from ham_dist.config.base import PositiveFloat
from ham_dist.config.schema import MethodSettings
from ham_dist.methods.method import MaskLoss, Method, SearchSpace

if TYPE_CHECKING:
    from ham_dist.distributed.sharding.model import ShardedModel
    from ham_dist.training.soft_threshold import SoftThresholding


class PepSettings(MethodSettings):
    """PEP: sparse tables by learned thresholds; it has no budget, and removes no column."""

    name: Literal["pep"] = "pep"
    granularity: Literal["table", "column", "element"] = "column"
    """Numbers of a table that share a threshold."""
    threshold_init: Annotated[float, Field(le=0)] = -15.0
    """Initial s of every threshold sigmoid(s). Far below this, its gradient underflows, and only
    `weight_decay` moves it."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of Adam on the thresholds."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    """Coupled L2 of s, which raises thresholds that start below 0. At s = -15 it does most of the work."""


class Pep(Method):
    """Learns thresholds together with the weights, on training batches; numbers below them are 0.

    The target is not used: sparsity grows with the length of the search. All columns are kept, so the dense
    part stays as wide as the supernet's, and result.json gives the bytes of the sparse tables as a bitmap and
    in CSR form. Retraining keeps the zeros. The authors retrain from the initial weights
    (`retrain.start = "scratch"`). Differences from their code: thresholds have an Adam of their own, and
    first-order tables are not pruned.

    Source: Liu et al., "Learnable embedding sizes for recommender systems" (2021), section 3.
    """

    Settings = PepSettings
    settings: PepSettings
    has_budget = False

    def __init__(self, space: SearchSpace, settings: PepSettings) -> None:
        super().__init__(space, settings)
        self._transform: SoftThresholding | None = None

    def mask(self) -> torch.Tensor:
        """Returns ones: no column is closed."""
        return torch.ones(self.space.layout.size, device=self.space.device)

    def near(self) -> bool:
        """Returns True: there is no target to be near."""
        return True

    def step(self, loss: MaskLoss) -> None:
        """Does nothing: thresholds are trained with the weights."""

    def choice(self) -> torch.Tensor:
        """Returns all columns."""
        return torch.ones(self.space.layout.size)

    def transform(self, model: "ShardedModel") -> "SoftThresholding":
        """Returns the thresholds, as lookups see them."""
        from ham_dist.training.soft_threshold import SoftThresholding

        settings = self.settings
        if self._transform is None:
            self._transform = SoftThresholding(
                model,
                settings.granularity,
                settings.threshold_init,
                learning_rate=settings.learning_rate,
                weight_decay=settings.weight_decay,
            )
        return self._transform

    def tensors(self) -> dict[str, Any]:
        """Returns the thresholds and the state of their Adam."""
        return {} if self._transform is None else self._transform.tensors()

    def logged(self) -> dict[str, torch.Tensor]:
        """Returns the thresholds s of tables or columns; nothing for those of elements."""
        if self._transform is None or self.settings.granularity == "element":
            return {}
        return {"s": self._transform.thresholds.shared}
