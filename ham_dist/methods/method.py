"""The interface of a size-search method, and what a method may know of the supernet.

S columns under search
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ham_dist.config.schema import MethodSettings

if TYPE_CHECKING:  # TorchRec, which settings are read without
    from ham_dist.embedding.mask import ColumnLayout
    from ham_dist.methods.budget import Budget

MaskGradient = Callable[[torch.Tensor], torch.Tensor]
"""dL/dm (S,) on the next validation batch at a mask m (S,) of any real numbers; a method may ask several times
in one step, always on the same batch."""


@dataclass(frozen=True)
class SearchSpace:
    """What there is to choose from.

    layout:       where each table's columns stand in a vector of S numbers.
    budget:       what the kept columns may cost.
    column_norms: makes the (S,) lengths of the supernet's columns; a collective, so every rank or none calls it.
    seed:         for methods that draw.
    device:       where masks live.
    """

    layout: "ColumnLayout"
    budget: "Budget"
    column_norms: Callable[[], torch.Tensor]
    seed: int
    device: torch.device


class Method(ABC):
    """Chooses columns. Alike on every rank: it sees only numbers that are alike on every rank."""

    Settings: ClassVar[type[MethodSettings]]
    """Its keys in [search.method]; the default of `name` is the method's name."""
    searches: ClassVar[bool] = True
    """False for a method that chooses from the pretrained supernet at once, without epochs of search."""

    def __init__(self, space: SearchSpace, settings: MethodSettings) -> None:
        self.space = space
        self.settings = settings

    @property
    def every(self) -> int:
        """Training steps to one step of the method."""
        return 1

    def warning(self, steps: int) -> str | None:
        """A warning before a search of `steps` training steps, if there is a reason for one."""
        return None

    def mask(self) -> torch.Tensor:
        """(S,) what columns are multiplied by in the next step on the weights, and in evaluation. Soft and drawn masks are masks too."""
        return self.choice()

    def step(self, gradient_at: MaskGradient) -> None:
        """One step of the method's own numbers on a validation batch."""
        raise NotImplementedError(f"{type(self).__name__} chooses without steps")

    @abstractmethod
    def choice(self) -> torch.Tensor:
        """(S,) float32 of 0 and 1: the columns that would be kept if the search ended here, within the budget (exactly, in columns)."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The method's own numbers, live, by name: what a checkpoint keeps."""
        return {}
