"""The interface of a size-search method, and the facts about the supernet that a method can use.

Shape letter: S columns under search.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ham_dist.config.schema import MethodSettings

if TYPE_CHECKING:  # These import TorchRec, which is not needed to read settings.
    from ham_dist.embedding.mask import ColumnLayout
    from ham_dist.methods.budget import Budget

MaskGradient = Callable[[torch.Tensor], torch.Tensor]
"""Returns dL/dm (S,) on the next validation batch, at a mask m (S,) of any real numbers.

A method may call it several times in one step; all calls of a step use the same batch."""


@dataclass(frozen=True)
class SearchSpace:
    """The columns to choose from, and their budget.

    Attributes:
        layout: Position of each table's columns in a vector of S numbers.
        budget: Limit on the cost of the kept columns.
        column_norms: Returns the norms of the supernet's columns, (S,). A collective: all ranks call it, or
            none.
        seed: Seed for methods that draw random numbers.
        device: Device of the masks.
    """

    layout: "ColumnLayout"
    budget: "Budget"
    column_norms: Callable[[], torch.Tensor]
    seed: int
    device: torch.device


class Method(ABC):
    """Chooses the columns to keep.

    All ranks make the same choice, because a method only reads numbers that are identical on every rank.

    Attributes:
        space: The columns to choose from.
        settings: The method's own settings.
    """

    Settings: ClassVar[type[MethodSettings]]
    """Class of the settings in [search.method]; the default of its `name` is the method's name."""
    searches: ClassVar[bool] = True
    """False for a method that chooses from the pretrained supernet directly, without search epochs."""

    def __init__(self, space: SearchSpace, settings: MethodSettings) -> None:
        self.space = space
        self.settings = settings

    @property
    def every(self) -> int:
        """Training steps per step of the method."""
        return 1

    def warning(self, steps: int) -> str | None:
        """Returns a warning to print before a search of `steps` training steps, or None."""
        return None

    def mask(self) -> torch.Tensor:
        """Returns the factors of the columns, (S,), in the next step on the weights and in evaluation.

        They need not be 0 or 1: soft and sampled masks are possible too.
        """
        return self.choice()

    def step(self, gradient_at: MaskGradient) -> None:
        """Makes one step of the method's own numbers, on one validation batch."""
        raise NotImplementedError(f"{type(self).__name__} does not search, and has no steps")

    @abstractmethod
    def choice(self) -> torch.Tensor:
        """Returns the columns to keep if the search ended here, as a mask (S,), float32, of 0 and 1.

        They fit into the budget; where it is in columns, they use all of it.
        """

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the method's own tensors by name, for checkpoints: the tensors themselves, not copies."""
        return {}
