"""The base class of all settings, and types of numbers that several sections use."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
LayerCount = Annotated[int, Field(gt=0, le=64)]
LayerWidths = Annotated[tuple[Annotated[int, Field(gt=0, le=65_536)], ...], Field(max_length=64)]
"""Limits far above what a model needs, so that a damaged file cannot make a process allocate all memory."""


def _ascending(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if list(numbers) != sorted(set(numbers)):
        raise ValueError("give ascending numbers, for example [2, 4, 8]")
    return numbers


AscendingInts = Annotated[tuple[PositiveInt, ...], AfterValidator(_ascending)]
PositiveFloat = Annotated[float, Field(gt=0)]
ClosedValue = Literal["zero", "mean", "shuffled"]
"""Value of a closed column while a method computes scores."""
RowWeights = Literal["rows", "lookups"]
"""Weights of a table's rows in a covariance: all alike, or as often as the training samples look them up."""


class Settings(BaseModel):
    """Base class of all sections: an unknown key is an error, and loaded settings cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
