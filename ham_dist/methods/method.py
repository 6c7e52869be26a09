"""The interface of a size-search method, and the facts about the supernet that a method can use.

Shape letter: S columns under search.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from ham_dist.config.base import ClosedValue, RowWeights
from ham_dist.config.schema import MethodSettings
from ham_dist.errors import ConfigError

if TYPE_CHECKING:  # These import TorchRec, which is not needed to read settings.
    from ham_dist.distributed.sharding.model import ShardedModel
    from ham_dist.embedding.mask import ColumnLayout
    from ham_dist.methods.budget import Budget
    from ham_dist.training.soft_threshold import SoftThresholding


@dataclass(frozen=True)
class MaskLoss:
    """The mean loss of one batch as a function of the mask m (S,), of any real numbers, at fixed weights.

    Both functions may be called several times, on all ranks alike; they change nothing. Their results are
    over the global batch, the same on every rank.

    Attributes:
        gradient_at: Returns dL/dm (S,) float32 at a mask.
        at: Returns L at a mask, by a forward pass only.
        rows: Samples in the global batch.
    """

    gradient_at: Callable[[torch.Tensor], torch.Tensor]
    at: Callable[[torch.Tensor], float]
    rows: int


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
        bands: Columns of each table that open and close together, of which one group is kept; None if every
            column is chosen on its own.
        covariances: Returns the covariance of the columns of each table, (d, d) float64 on CPU, with these
            weights of its rows. A collective. None if nothing of the kind is known.
    """

    layout: "ColumnLayout"
    budget: "Budget"
    column_norms: Callable[[], torch.Tensor]
    seed: int
    device: torch.device
    bands: Mapping[str, Sequence[slice]] | None = None
    covariances: Callable[[RowWeights], Mapping[str, torch.Tensor]] | None = None


class Method(ABC):
    """Chooses the columns to keep.

    A method with `searches` takes steps in between the steps on the weights, for several epochs. One without
    chooses from the pretrained supernet, after one pass over data if it `reads_data`.

    All ranks make the same choice, because a method only reads numbers that are identical on every rank.

    Attributes:
        space: The columns to choose from.
        settings: The method's own settings.
    """

    Settings: ClassVar[type[MethodSettings]]
    """Class of the settings in [search.method]; the default of its `name` is the method's name."""
    searches: ClassVar[bool] = True
    """False for a method that chooses from the pretrained supernet directly, without search epochs."""
    reads_data: ClassVar[bool] = False
    """True for a method without search epochs that needs one pass over data, in `score`."""

    has_budget: ClassVar[bool] = True
    """False for a method that does not use the target."""
    chooses_bands: ClassVar[bool] = False
    """True for a method that keeps one band of columns of each table, where the model has bands."""

    def __init__(self, space: SearchSpace, settings: MethodSettings) -> None:
        if space.bands is not None and not self.chooses_bands:
            raise ConfigError(
                f'search.method = "{settings.name}": chooses columns one by one, and cannot search a model '
                "with candidate dims.\n"
                '  Leave out model.candidates, or use search.method = "autodim".'
            )
        self.space = space
        self.settings = settings

    @property
    def every(self) -> int:
        """Training steps per step of the method."""
        return 1

    @property
    def batches(self) -> Literal["validation", "training"]:
        """Split of the batches that `step` and `score` get."""
        return "validation"

    @property
    def closed(self) -> ClosedValue:
        """Value of a closed column in the losses that `step` and `score` get.

        Steps on the weights and evaluation always take 0, the value of a column that is sliced away.
        """
        return "zero"

    @property
    def passes(self) -> int:
        """Forward passes per batch in `score`, about; for the log."""
        return 1

    def warning(self, steps: int) -> str | None:
        """Returns a warning to print before a search of `steps` training steps, or None."""
        return None

    def mask(self) -> torch.Tensor:
        """Returns the factors of the columns, (S,), in the next step on the weights.

        They need not be 0 or 1: soft and sampled masks are possible too.
        """
        return self.choice()

    def used(self) -> int:
        """Returns the cost of the columns in use, in the budget's unit.

        A method whose mask is soft or sampled overrides this, as nearly every column of it is above 0.
        """
        return self.space.budget.used(self.mask())

    def near(self) -> bool:
        """Returns True if the validation AUC of the choice tells when to stop the search.

        A hard mask must be near the budget: the weights are trained under it, and the choice is another mask
        if it is not. A method whose mask never is near, such as a soft one, overrides this.
        """
        return self.space.budget.near(self.mask())

    def step(self, loss: MaskLoss) -> None:
        """Makes one step of the method's own numbers, on one batch."""
        raise NotImplementedError(f"{type(self).__name__} does not search, and has no steps")

    def score(self, losses: Iterator[MaskLoss]) -> None:
        """Reads every sample of `batches` once, by data.batch_size; only if `reads_data` is true."""
        raise NotImplementedError(f"{type(self).__name__} needs no pass over data")

    @abstractmethod
    def choice(self) -> torch.Tensor:
        """Returns the columns to keep if the search ended here, as a mask (S,), float32, of 0 and 1.

        They fit into the budget; where it is in columns, they use all of it.
        """

    def fold(self) -> torch.Tensor | None:
        """Returns the factors (S,) to multiply into the columns of the tables when they are sliced.

        None if the kept columns stay as they are, as under a hard mask.
        """
        return None

    def folded_choice(self) -> torch.Tensor:
        """Returns the mask (S,) under which the supernet computes what the sliced model will compute."""
        choice, factors = self.choice(), self.fold()
        return choice if factors is None else choice * factors.to(choice.device)

    def transform(self, model: "ShardedModel") -> "SoftThresholding | None":
        """Returns a function of the tables that lookups read in place of them during the search, or None."""
        return None

    def tensors(self) -> dict[str, Any]:
        """Returns the method's own tensors by name, for checkpoints: the tensors themselves, not copies.

        They are the same on every rank, or sharded as the tables are.
        """
        return {}

    def logged(self) -> dict[str, torch.Tensor]:
        """Returns the tensors to log at the end of each epoch of the search, by name."""
        return self.tensors()
