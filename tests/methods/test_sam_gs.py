"""SAM-GS against autograd through the Gumbel-sigmoid, and its random draws."""

from typing import Any

import pytest
import torch

from ham_dist.config.target import Target
from ham_dist.methods.sam_gs import EDGE, GumbelSigmoidMask
from tests.support.search_space import method, with_gradient


def gumbel(**settings: Any) -> GumbelSigmoidMask:
    found = method("sam_gs", Target(columns=6), **settings)
    assert isinstance(found, GumbelSigmoidMask)
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_a_step_follows_the_chain_rule(temperature: float) -> None:
    ours = gumbel(temperature=temperature, alpha_learning_rate=0.01, alpha_init=0.6)
    gradient = torch.linspace(-1, 1, 10)
    for _ in range(5):
        seen: list[torch.Tensor] = []
        before = ours.alpha.double().requires_grad_()

        def gradient_at(mask: torch.Tensor, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(mask)
            return gradient

        ours.step(with_gradient(gradient_at))
        (mask,) = seen
        # The noise that gave this mask: logit(u) = temperature * logit(mask) - logit(alpha).
        noise = temperature * torch.logit(mask.double()) - torch.logit(before.detach())
        usable = (mask > 1e-4) & (mask < 1 - 1e-4)
        assert usable.any(), "float32 tells the noise of no column"
        (
            torch.sigmoid((torch.logit(before) + noise) / temperature)[usable] @ gradient[usable].double()
        ).backward()
        assert before.grad is not None
        moved = (before.detach() - 0.01 * before.grad).clamp(EDGE, 1 - EDGE).float()
        torch.testing.assert_close(ours.alpha[usable], moved[usable], rtol=0, atol=1e-5)
    assert int(ours.steps) == 5


def test_at_low_temperature_the_mask_is_a_draw_with_probability_alpha() -> None:
    ours = gumbel(temperature=0.001)
    ours.alpha.copy_(torch.linspace(0.05, 0.95, 10))
    masks = []
    for step in range(2000):
        ours.steps.fill_(step)
        masks.append(ours.mask())
    mean = torch.stack(masks).mean(dim=0)
    # Four standard errors of a Bernoulli mean are at most 4 * 0.5 / sqrt(2000) = 0.045.
    torch.testing.assert_close(mean, ours.alpha, rtol=0, atol=0.045)


def test_evaluation_has_no_noise() -> None:
    ours = gumbel(alpha_init=0.7)
    assert (ours.mask() != ours.alpha).all()
    factors = ours.fold()
    assert factors is not None
    assert torch.equal(factors, ours.alpha)
    assert torch.equal(ours.folded_choice(), ours.choice() * ours.alpha)
    assert ours.used() == 7
    assert ours.near()


def test_alpha_stays_inside_0_and_1() -> None:
    ours = gumbel(alpha_learning_rate=1e6, alpha_init=0.5)
    for gradient in (1.0, -1.0):
        for _ in range(5):
            ours.step(with_gradient(lambda mask, gradient=gradient: torch.full((10,), gradient)))  # type: ignore[misc]
        assert ((ours.alpha > 0) & (ours.alpha < 1)).all()
        assert ours.mask().isfinite().all()
