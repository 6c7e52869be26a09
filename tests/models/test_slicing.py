"""Slicing an interaction: it gives the logits that the wide one gives on masked columns."""

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


def cut(model: Interaction, settings: ModelSettings, columns: dict[str, torch.Tensor]) -> Interaction:
    """A narrow model with the weights of `model`, chosen along `axes()` and nothing else."""
    narrow = build_interaction(settings, {field: len(kept) for field, kept in columns.items()}).double()
    axes = model.axes()
    state = {}
    for name, values in model.state_dict().items():
        for dimension, axis in axes.get(name, {}).items():
            values = values.index_select(dimension, axis.kept(model.dims, columns))
        state[name] = values
    narrow.load_state_dict(state)
    return narrow


@st.composite
def cuts(draw: st.DrawFn) -> dict[str, list[bool]]:
    """For each field and each of its columns: whether it stays; at least one does."""
    kept = draw(
        st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=5).filter(
            lambda fields: any(map(any, fields))
        )
    )
    return {f"field.{len(kept) - number}": columns for number, columns in enumerate(kept)}


@settings(max_examples=40, deadline=None, derandomize=True)
@pytest.mark.parametrize("first_order", ["linear", "table"])
@pytest.mark.parametrize("name", INTERACTIONS)
@given(kept=cuts(), mlp=st.sampled_from([(), (4,), (4, 3)]), seed=st.integers(0, 100))
def test_narrow_equals_masked(
    name: str, first_order: str, kept: dict[str, list[bool]], mlp: tuple[int, ...], seed: int
) -> None:
    settings = model_settings(name, lift_dim=4, first_order=first_order, mlp=mlp)
    columns = {field: torch.tensor(flags).nonzero().squeeze(1) for field, flags in kept.items()}
    mask = torch.tensor([flag for flags in kept.values() for flag in flags])
    torch.manual_seed(seed)
    wide = build_interaction(settings, {field: len(flags) for field, flags in kept.items()}).double()
    values = torch.randn(B, len(mask), dtype=torch.float64)
    narrow = cut(wide, settings, columns)

    for training in (
        True,
        False,
    ):  # training first: it moves BatchNorm's running statistics, which evaluation reads
        wide.train(training)
        narrow.train(training)
        torch.testing.assert_close(narrow(values[:, mask]), wide(values * mask), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", INTERACTIONS)
def test_cut_twice_equals_cut_once(name: str) -> None:
    """A search that falls from target to target cuts a model that was cut before, with slots that are empty already."""
    settings = model_settings(name, lift_dim=4, mlp=(4,))
    torch.manual_seed(0)
    wide = build_interaction(settings, {"a": 3, "b": 2, "c": 4}).double()
    none = torch.tensor([], dtype=torch.int64)
    once = cut(deepcopy(wide), settings, {"a": torch.tensor([2]), "b": none, "c": none})
    first = {"a": torch.tensor([1, 2]), "b": none, "c": torch.tensor([0, 3])}
    twice = cut(cut(wide, settings, first), settings, {"a": torch.tensor([1]), "b": none, "c": none})
    assert once.dims == twice.dims
    for key, values in once.state_dict().items():
        assert torch.equal(values, twice.state_dict()[key]), key
