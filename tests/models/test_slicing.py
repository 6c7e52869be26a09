"""Slicing an interaction: its logits are those of the full one on masked columns."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ham_dist.config.schema import ModelSettings
from ham_dist.models.interaction import Interaction
from ham_dist.models.registry import INTERACTIONS, build_interaction
from tests.support.model_settings import model_settings

B = 9
TOLERANCE = 1e-6  # double precision; the two models add the same numbers in another order


def sliced_along_axes(
    model: Interaction, settings: ModelSettings, columns: dict[str, torch.Tensor]
) -> Interaction:
    """Returns a smaller model with the weights of `model`, sliced only along `axes()`."""
    sliced = build_interaction(settings, {field: len(kept) for field, kept in columns.items()}).double()
    axes = model.axes()
    state = {}
    for name, values in model.state_dict().items():
        for dimension, axis in axes.get(name, {}).items():
            values = values.index_select(dimension, axis.kept(model.dims, columns))
        state[name] = values
    sliced.load_state_dict(state)
    return sliced


@st.composite
def kept_columns(draw: st.DrawFn) -> dict[str, list[bool]]:
    """For each field a flag per column, True for a kept one; at least one is kept."""
    kept = draw(
        st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=5).filter(
            lambda fields: any(map(any, fields))
        )
    )
    return {f"field.{len(kept) - number}": columns for number, columns in enumerate(kept)}


@settings(max_examples=40, deadline=None, derandomize=True)
@pytest.mark.parametrize("first_order", ["linear", "table"])
@pytest.mark.parametrize("name", INTERACTIONS)
@given(kept=kept_columns(), mlp=st.sampled_from([(), (4,), (4, 3)]), seed=st.integers(0, 100))
def test_sliced_equals_masked(
    name: str, first_order: str, kept: dict[str, list[bool]], mlp: tuple[int, ...], seed: int
) -> None:
    settings = model_settings(name, lift_dim=4, first_order=first_order, mlp=mlp)
    columns = {field: torch.tensor(flags).nonzero().squeeze(1) for field, flags in kept.items()}
    mask = torch.tensor([flag for flags in kept.values() for flag in flags])
    torch.manual_seed(seed)
    full = build_interaction(settings, {field: len(flags) for field, flags in kept.items()}).double()
    values = torch.randn(B, len(mask), dtype=torch.float64)
    sliced = sliced_along_axes(full, settings, columns)

    # Training first: it updates BatchNorm's running statistics, which evaluation reads.
    for training in (True, False):
        full.train(training)
        sliced.train(training)
        torch.testing.assert_close(sliced(values[:, mask]), full(values * mask), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", INTERACTIONS)
def test_slicing_twice_equals_slicing_once(name: str) -> None:
    """A search with decreasing targets slices a model that was sliced before and has empty slots."""
    settings = model_settings(name, lift_dim=4, mlp=(4,))
    torch.manual_seed(0)
    full = build_interaction(settings, {"a": 3, "b": 2, "c": 4}).double()
    none = torch.tensor([], dtype=torch.int64)
    once = sliced_along_axes(deepcopy(full), settings, {"a": torch.tensor([2]), "b": none, "c": none})
    first = {"a": torch.tensor([1, 2]), "b": none, "c": torch.tensor([0, 3])}
    twice = sliced_along_axes(
        sliced_along_axes(full, settings, first), settings, {"a": torch.tensor([1]), "b": none, "c": none}
    )
    assert once.dims == twice.dims
    for key, values in once.state_dict().items():
        assert torch.equal(values, twice.state_dict()[key]), key
