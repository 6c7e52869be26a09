"""Settings of generated data."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ham_dist.config.base import PositiveFloat, Settings
from ham_dist.config.presets import PRESETS


class SyntheticSettings(Settings):
    """Generated data with a planted truth: the number of columns that each field needs is known."""

    preset: Annotated[Literal["dlrm", "dlrm-39"] | None, Field(exclude=True)] = None
    """Sets `num_embeddings`, `planted_ranks` and `skew` together. `dlrm`: the 26 tables of the DLRM
    benchmark, 204 million rows; `dlrm-39`: the same with 13 small tables before them."""
    rows: Annotated[int, Field(gt=0, le=10**12)] = 200_000
    """Samples in all three splits together."""
    planted_ranks: tuple[Annotated[int, Field(ge=0)], ...] = (6, 4, 3, 2, 1, 0, 0, 0)
    """Number of columns that each field needs; 0 makes a field pure noise. One entry per field."""
    num_embeddings: tuple[Annotated[int, Field(ge=2, lt=2**31)], ...] = (
        600,
        400,
        300,
        200,
        100,
        500,
        200,
        50,
    )
    """Rows C_j of each field's table, including row 0 for unknown values. One entry per field."""
    skew: Annotated[float, Field(ge=0)] = 0.6
    """Zipf exponent of the frequencies of a field's values; 0 is uniform."""
    missing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the values of every field that are missing. They get id 0, which has no effect on the
    label."""
    signal: PositiveFloat = 2.0
    """Standard deviation of the true logit over the samples, if no value were missing. The larger it is, the
    better the labels can be predicted."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the data. It is separate from the run's seed, so that runs with different seeds can share one
    data set."""

    @model_validator(mode="after")
    def _expand_preset(self) -> "SyntheticSettings":
        if self.preset is None:
            return self
        if "num_embeddings" in self.model_fields_set:
            raise ValueError(f"preset = {self.preset!r} and num_embeddings are both given; give one of them")
        for name, value in PRESETS[self.preset].items():
            if name not in self.model_fields_set:
                # The model is frozen, and a validator must return the same instance.
                object.__setattr__(self, name, value)
        object.__setattr__(self, "preset", None)
        return self

    @model_validator(mode="after")
    def _one_entry_per_field(self) -> "SyntheticSettings":
        if len(self.planted_ranks) != len(self.num_embeddings):
            raise ValueError(
                f"planted_ranks has {len(self.planted_ranks)} entries and num_embeddings has "
                f"{len(self.num_embeddings)}; give one entry per field in both"
            )
        return self
