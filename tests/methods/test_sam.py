"""SAM against SGD by autograd, and its rule for equal alphas."""

import pytest
import torch

from ham_dist.config.target import Target
from tests.support.search_space import LAYOUT, method, with_gradient


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("l1", [0.0, 0.02])
def test_steps_are_those_of_sgd_with_a_clamp(normalized: bool, l1: float) -> None:
    sam = method("sam", Target(columns=6), alpha_learning_rate=0.1, normalized=normalized, l1=l1)
    alpha = torch.ones(10, requires_grad=True)
    optimizer = torch.optim.SGD([alpha], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        slope, curve = torch.randn(2, 10, generator=generator).unbind()
        optimizer.zero_grad()
        (alpha @ slope + (alpha.square() @ curve.abs()) / 2 + l1 * alpha.abs().sum()).backward()
        assert alpha.grad is not None
        if normalized:
            for part in (slice(0, 4), slice(4, 6), slice(6, 10)):
                alpha.grad[part] = alpha.grad[part] / (alpha.grad[part].abs().mean() + 1e-8)
        optimizer.step()
        with torch.no_grad():
            alpha.clamp_(0, 1)
        sam.step(with_gradient(lambda mask, slope=slope, curve=curve: slope + mask * curve.abs()))  # type: ignore[misc]
        torch.testing.assert_close(sam.mask(), alpha.detach(), rtol=0, atol=1e-6)  # another order of terms
    assert int((sam.mask() < 1).sum()) > 0, "the steps are large enough to matter"


def test_it_starts_open_and_its_mask_is_what_is_folded() -> None:
    sam = method("sam", Target(columns=6))
    assert sam.mask().tolist() == [1.0] * 10
    assert sam.used() == 10
    sam.step(with_gradient(lambda mask: torch.arange(10.0) * 8))
    alpha = [1 - 0.08 * column for column in range(10)]
    assert sam.mask().tolist() == pytest.approx(alpha)
    assert sam.used() == 6  # of 6.4
    factors = sam.fold()
    assert factors is not None
    assert torch.equal(factors, sam.mask())
    assert sam.folded_choice().tolist() == pytest.approx([*alpha[:6], 0, 0, 0, 0])


def test_a_soft_mask_is_always_near_its_target() -> None:
    """So that every epoch counts for early stopping: its AUC is that of a choice that meets the budget."""
    assert method("sam", Target(columns=1)).near()


def test_of_equal_alphas_those_stay_that_were_pushed_farthest_beyond_the_bound() -> None:
    sam = method("sam", Target(columns=4), alpha_learning_rate=1.0)
    up = torch.tensor([0.1, 0.3, 0.2, 0.4, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0])
    sam.step(with_gradient(lambda mask: -up))
    assert sam.mask().tolist() == [1.0] * 10
    assert torch.nonzero(sam.choice()).flatten().tolist() == [1, 2, 3, 8]
    resumed = method("sam", Target(columns=4))
    for name, values in sam.tensors().items():
        resumed.tensors()[name].copy_(values)
    assert torch.equal(resumed.choice(), sam.choice()), "a checkpoint holds what the rule needs"
    # Pushed down and up again: the pushes beyond the bound before still count.
    for sign in (1, -1):
        sam.step(with_gradient(lambda mask, sign=sign: torch.full((10,), sign * 0.25)))  # type: ignore[misc]
    assert sam.mask().tolist() == [1.0] * 10
    assert torch.nonzero(sam.choice()).flatten().tolist() == [1, 2, 3, 8]


def test_of_alphas_at_zero_those_stay_that_were_pushed_least_far_below() -> None:
    sam = method("sam", Target(columns=4), alpha_learning_rate=1.0)
    sam.step(with_gradient(lambda mask: 2 + torch.arange(10.0)))
    assert sam.used() == 0
    assert torch.nonzero(sam.choice()).flatten().tolist() == [0, 1, 2, 3]
    assert LAYOUT.size == 10


def test_normalized_steps_of_a_table_do_not_depend_on_the_scale_of_its_gradient() -> None:
    sams = [method("sam", Target(columns=6), normalized=True) for _ in range(2)]
    gradient = torch.arange(1.0, 11)
    scaled = torch.cat([gradient[:4] * 1000, gradient[4:]])
    for sam, of_step in zip(sams, (gradient, scaled), strict=True):
        sam.step(with_gradient(lambda mask, of_step=of_step: of_step.clone()))  # type: ignore[misc]
    torch.testing.assert_close(sams[0].mask(), sams[1].mask(), rtol=0, atol=1e-6)
