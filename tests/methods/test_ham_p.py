"""HAM-p: draws with the right probability, straight-through steps, and ProbMask's projection."""

from typing import Any

import pytest
import torch

from ham_dist.config.target import Target
from ham_dist.methods.ham_p import BernoulliMask
from ham_dist.methods.soft import SampledAlpha
from tests.support.search_space import LAYOUT, method, with_gradient


def bernoulli(target: Target | None = None, seed: int = 0, **settings: Any) -> BernoulliMask:
    found = method("ham_p", target or Target(columns=6), seed=seed, **settings)
    assert isinstance(found, BernoulliMask)
    return found


def test_masks_are_0_or_1_and_their_mean_is_alpha() -> None:
    ours = bernoulli()
    ours.alpha.copy_(torch.linspace(0, 1, 10))
    masks = []
    for step in range(1000):
        ours.steps.fill_(step)
        masks += [ours.mask(), ours.mask_of_step()]
    drawn = torch.stack(masks)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    # Four standard errors of a Bernoulli mean are at most 4 * 0.5 / sqrt(2000) = 0.045.
    torch.testing.assert_close(drawn.mean(dim=0), ours.alpha, rtol=0, atol=0.045)
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 9] == 1).all()
    together = torch.cov(drawn[:, 1:9].T)
    assert (together - together.diag().diag()).abs().max() < 0.03, "columns are drawn independently"


def test_a_step_is_straight_through_at_a_drawn_mask() -> None:
    ours = bernoulli(alpha_init=0.5, alpha_learning_rate=0.1)
    seen: list[torch.Tensor] = []
    gradient = torch.linspace(-2, 2, 10)

    def gradient_at(mask: torch.Tensor) -> torch.Tensor:
        seen.append(mask)
        return gradient

    before = ours.mask()
    ours.step(with_gradient(gradient_at))
    torch.testing.assert_close(ours.alpha, 0.5 - 0.1 * gradient, rtol=0, atol=1e-7)
    assert set(seen[0].tolist()) == {0.0, 1.0}
    assert not torch.equal(seen[0], before), "the step has a draw of its own"
    assert ours.fold() is None


@pytest.mark.parametrize("name", ["sam_gs", "ham_p"])
def test_draws_depend_on_the_seed_and_the_step_alone(name: str) -> None:
    def masks(seed: int, steps: int) -> list[torch.Tensor]:
        torch.manual_seed(steps)  # torch's own generator plays no part
        found = method(name, Target(columns=6), seed=seed, alpha_init=0.5)
        assert isinstance(found, SampledAlpha)
        found.tensors()["steps"].fill_(steps)
        return [found.mask(), found.mask(), found.mask_of_step()]

    assert torch.equal(masks(0, 3)[0], masks(0, 3)[1])
    for one, other in zip(masks(0, 3), masks(0, 3), strict=True):
        assert torch.equal(one, other)
    different = [masks(0, 3)[0], masks(0, 3)[2], masks(0, 4)[0], masks(1, 3)[0]]
    assert len({tuple(mask.tolist()) for mask in different}) == 4


def test_the_projection_by_hand() -> None:
    ours = bernoulli(Target(columns=2), projected=True, alpha_learning_rate=1.0)
    ours.alpha.copy_(torch.tensor([1.0, 0.9, 0.5, 0.4, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0]))
    ours.step(with_gradient(torch.zeros_like))
    # 1 + 0.9 + 0.5 + 0.4 + 0.1 = 2.9; less 0.2 each is 0.8 + 0.7 + 0.3 + 0.2 + 0 = 2.
    expected = torch.tensor([0.8, 0.7, 0.3, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(ours.alpha, expected, rtol=0, atol=1e-6)
    assert ours.used() == 2


@pytest.mark.parametrize("target", [Target(columns=4), Target(bytes=900)])
def test_the_projection_is_the_nearest_point_within_the_budget(target: Target) -> None:
    """By the conditions of optimality: what is not at a bound moved by the same multiple of its cost."""
    ours = bernoulli(target, projected=True, alpha_learning_rate=1.0)
    before = torch.rand(10, generator=torch.Generator().manual_seed(1))
    ours.alpha.copy_(before)
    costs = ours.space.budget.costs.float()
    assert before @ costs > ours.space.budget.limit
    ours.step(with_gradient(torch.zeros_like))
    assert float(ours.alpha @ costs) == pytest.approx(ours.space.budget.limit, rel=1e-5)
    inside = ours.alpha > 0
    multiple = ((before - ours.alpha) / costs)[inside]
    assert multiple.max() > 0
    torch.testing.assert_close(multiple, multiple.mean().expand_as(multiple), rtol=1e-3, atol=0)
    assert (before[~inside] <= multiple.mean() * costs[~inside] * 1.001).all()


def test_probabilities_within_the_budget_are_not_raised() -> None:
    ours = bernoulli(Target(columns=9), projected=True)
    ours.alpha.fill_(0.5)
    ours.step(with_gradient(torch.zeros_like))
    assert ours.alpha.tolist() == [0.5] * LAYOUT.size


def test_without_the_option_nothing_is_projected() -> None:
    ours = bernoulli(Target(columns=2))
    ours.step(with_gradient(torch.zeros_like))
    assert ours.alpha.tolist() == [1.0] * LAYOUT.size
    assert ours.used() == 10
