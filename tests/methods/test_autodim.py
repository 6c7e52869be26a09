"""AutoDim against its formulas, and its choices under a budget."""

from typing import Any

import pytest
import torch

from ham_dist.config.schema import Target
from ham_dist.errors import ConfigError, TargetError
from ham_dist.methods.autodim import AutoDim, AutoDimSettings
from ham_dist.methods.registry import METHODS
from tests.support.search_space import LAYOUT, method, space, with_gradient

SIZES = torch.tensor([[1, 3], [1, 1], [1, 3]])


def autodim(columns: int, **settings: Any) -> AutoDim:
    chosen = method("autodim", Target(columns=columns), **settings)
    assert isinstance(chosen, AutoDim)
    return chosen


def test_the_mask_is_one_mixture_per_field() -> None:
    mask = autodim(7).mask()
    for part in (mask[0:4], mask[4:6], mask[6:10]):
        assert torch.equal(part[1:], part[1].expand(len(part) - 1)), "one number for all columns of a band"
        assert float(part[0] + part[1]) == pytest.approx(1.0, abs=1e-6)


def test_noise_depends_on_seed_and_step_alone() -> None:
    first, second = autodim(7), autodim(7)
    assert torch.equal(first.mask(), second.mask())
    first.step(with_gradient(torch.zeros_like))
    assert not torch.equal(first.mask(), second.mask())
    second.tensors()["steps"].fill_(1)
    assert torch.equal(first.mask(), second.mask()), "a resumed search draws the same numbers"


def test_a_step_follows_the_chain_rule() -> None:
    chosen = autodim(7, alpha_learning_rate=0.5)
    chosen.logits.copy_(torch.tensor([[0.3, -0.2], [0.0, 1.0], [-1.0, 0.5]]))
    before, gradient = chosen.logits.clone(), torch.arange(10.0)
    weights = chosen.mask()[[0, 1, 4, 5, 6, 7]].view(3, 2)
    # dL/dw of a band is the sum over its columns. d softmax(z / t) / dz = (diag(w) - w w') / t, and
    # z = log softmax(logits) + noise differs from the logits by a number per field, which w does not see.
    of_band = torch.tensor([[0.0, 1 + 2 + 3], [4.0, 5.0], [6.0, 7 + 8 + 9]])
    expected = weights * (of_band - (weights * of_band).sum(dim=1, keepdim=True)) / chosen.temperature
    chosen.step(with_gradient(lambda mask: gradient))
    torch.testing.assert_close(before - chosen.logits, 0.5 * expected, rtol=1e-5, atol=1e-6)


def test_the_temperature_falls_to_its_lowest() -> None:
    chosen = autodim(7, temperature_decay=0.3)
    assert chosen.temperature == 1.0
    chosen.steps.fill_(2)
    assert chosen.temperature == pytest.approx(0.4)
    chosen.steps.fill_(50)
    assert chosen.temperature == 0.01


@pytest.mark.parametrize(
    ("columns", "kept"), [(3, [1, 1, 1]), (5, [1, 1, 3]), (6, [1, 1, 3]), (7, [3, 1, 3])]
)
def test_the_budget_takes_the_most_probable_candidates_that_fit(columns: int, kept: list[int]) -> None:
    chosen = autodim(columns)
    chosen.logits.copy_(torch.tensor([[0.0, 1.0], [0.5, 0.0], [0.0, 2.0]]))
    counts = [len(part) for part in LAYOUT.split(chosen.choice()).values()]
    assert counts == kept
    assert chosen.space.budget.used(chosen.choice()) <= columns


def test_the_discrete_choice_ignores_the_target() -> None:
    chosen = autodim(3, choice="discrete")
    chosen.logits.copy_(torch.tensor([[0.0, 1.0], [0.5, 0.0], [0.0, 2.0]]))
    assert [part.tolist() for part in LAYOUT.split(chosen.choice()).values()] == [[1, 2, 3], [0], [1, 2, 3]]
    assert chosen.used() == 7


def test_what_it_cannot_search() -> None:
    with pytest.raises(ConfigError, match=r"no candidate dims.*\n.*model.candidates"):
        AutoDim(space(Target(columns=3)), AutoDimSettings())
    with pytest.raises(TargetError, match="columns = 2: below the 3"):
        autodim(2)
    with pytest.raises(ConfigError, match=r"ham.*one by one.*\n.*autodim"):
        METHODS["ham"](space(Target(columns=3), bands=True), METHODS["ham"].Settings.model_validate({}))
