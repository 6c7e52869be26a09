"""Candidate dims of every field, each with columns, a linear map and a BatchNorm of its own (AutoDim).

Shape letters: B rows, F fields, D columns of all fields, K candidates, L = largest candidate.
"""

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import nn

from ham_dist.config.schema import ModelSettings
from ham_dist.errors import TargetError
from ham_dist.models.interaction import Axis, Interaction

ROUNDING = 1e-5
"""Sum of a field's mask numbers above 1 that counts as rounding."""


class CandidateLift(Interaction):
    """Lifts the candidates of every field to dim L, adds them up by weight, and gives them to an interaction.

    A field's columns are bands, one for each candidate dim, in ascending order; a band is the embedding table
    of its candidate. Field j enters the interaction as sum_c w_jc BatchNorm(e_jc W_jc), without scale and
    shift in BatchNorm. w_jc is the mean of the mask over the band; if a field's w add up to more than 1, as
    with every column open, they are divided by their sum.

    A mask must open and close whole bands. After slicing, a field has the columns of one candidate.

    Args:
        dims: d_j by field: the sum of the candidates (all of them), one candidate, or 0 (removed).
        settings: Uses `candidates`.
        inner: Builds the interaction over dims {field: L}.
    Raises:
        TargetError: No field has a column, or a field has columns of no candidate.
    Source: Zhao et al., "AutoDim: Field-aware embedding dimension search in recommender systems" (2021),
        sections 2.2 and 2.3.
    """

    def __init__(self, dims: Mapping[str, int], settings: ModelSettings, inner: type[Interaction]) -> None:
        self.keeps_slots = inner.keeps_slots  # type: ignore[misc]
        super().__init__(dims, settings)
        self.lift_dim = settings.candidates[-1]
        self._bands = {
            field: candidate_bands(settings.candidates, dim) if dim else {}
            for field, dim in self.dims.items()
        }
        self.inner = inner({field: self.lift_dim if dim else 0 for field, dim in self.dims.items()}, settings)
        self.fields = {
            candidate: fields
            for candidate in settings.candidates
            if (fields := [field for field, bands in self._bands.items() if candidate in bands])
        }
        self.maps = nn.ParameterDict()
        self.norms = nn.ModuleDict()
        starts = dict(zip(self.dims, accumulate(self.dims.values(), initial=0), strict=False))
        lifted = [field for field, dim in self.dims.items() if dim]
        for candidate, fields in self.fields.items():
            weight = torch.empty(len(fields), candidate, self.lift_dim)
            self.maps[str(candidate)] = nn.Parameter(
                weight.uniform_(-(candidate**-0.5), candidate**-0.5)
            )  # the initialization of nn.Linear
            self.norms[str(candidate)] = nn.BatchNorm1d(len(fields) * self.lift_dim, affine=False)
            columns = [
                starts[field] + self._bands[field][candidate].start + number
                for field in fields
                for number in range(candidate)
            ]
            self.register_buffer(f"columns_{candidate}", torch.tensor(columns), persistent=False)
            slots = torch.tensor([lifted.index(field) for field in fields])
            self.register_buffer(f"slots_{candidate}", slots, persistent=False)
        self.slots = len(lifted)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights, the columns and the logits."""
        return next(iter(self.maps.values())).dtype

    def bands(self) -> dict[str, list[slice]]:
        """The columns of each candidate that a field has."""
        return {field: list(bands.values()) for field, bands in self._bands.items()}

    def forward(self, columns: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        mask = columns.new_ones(columns.shape[1]) if mask is None else mask
        weights = {candidate: self._by_field(mask, candidate).mean(dim=1) for candidate in self.fields}
        totals = mask.new_zeros(self.slots)
        for candidate, values in weights.items():
            totals = totals.index_add(0, self._slots(candidate), values)
        scale = torch.where(totals > 1 + ROUNDING, 1 / totals.clamp(min=1), torch.ones_like(totals))
        mixed = columns.new_zeros(len(columns), self.slots, self.lift_dim)
        for candidate, values in weights.items():
            slots = self._slots(candidate)
            by_field = self._by_field(columns, candidate).transpose(0, 1)
            lifted = torch.bmm(by_field, self.maps[str(candidate)]).transpose(0, 1)
            normed = self.norms[str(candidate)](lifted.flatten(1)).view(lifted.shape)
            weight = (values * scale[slots])[:, None]
            mixed = mixed.index_add(1, slots, (weight * normed).to(mixed.dtype))
        logits: torch.Tensor = self.inner(mixed.flatten(1))
        return logits

    def axes(self) -> dict[str, dict[int, Axis]]:
        """Blocks of fields, by candidate; the interaction's own axes run over lifted fields."""
        axes: dict[str, dict[int, Axis]] = {}
        for candidate, fields in self.fields.items():
            bands = tuple(self._bands[field][candidate] for field in fields)
            axes[f"maps.{candidate}"] = {0: Axis(tuple(fields), block=1, bands=bands)}
            of_norm = {0: Axis(tuple(fields), block=self.lift_dim, bands=bands)}
            axes |= {f"norms.{candidate}.{name}": of_norm for name in ("running_mean", "running_var")}
        for name, of_inner in self.inner.axes().items():
            axes[f"inner.{name}"] = {
                dimension: axis if axis.block else Axis(axis.fields, block=self.lift_dim, tail=axis.tail)
                for dimension, axis in of_inner.items()
            }
        return axes

    def _by_field(self, columns: torch.Tensor, candidate: int) -> torch.Tensor:
        """Returns the columns of a candidate by field, (..., fields, candidate)."""
        numbers: torch.Tensor = getattr(self, f"columns_{candidate}")
        return columns.index_select(-1, numbers).unflatten(-1, (-1, candidate))

    def _slots(self, candidate: int) -> torch.Tensor:
        slots: torch.Tensor = getattr(self, f"slots_{candidate}")
        return slots


def candidate_bands(candidates: tuple[int, ...], dim: int) -> dict[int, slice]:
    """Returns the columns of each candidate in a field of `dim` columns.

    Raises:
        TargetError: `dim` is neither a candidate nor the sum of all.
    """
    if dim == sum(candidates):
        ends = list(accumulate(candidates))
        return {
            candidate: slice(end - candidate, end) for candidate, end in zip(candidates, ends, strict=True)
        }
    if dim in candidates:
        return {dim: slice(0, dim)}
    raise TargetError(
        f"model.candidates: a field has {dim} columns, expected one of {', '.join(map(str, candidates))}.\n"
        "  Search with a method that chooses candidates, such as autodim."
    )
