"""Settings of HAM that the paper does not have: the exact top mask, averaged alpha, and costs of columns."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ham_dist.config.target import Target
from ham_dist.embedding.mask import ColumnLayout
from ham_dist.methods.budget import Budget
from ham_dist.methods.ham import HamSettings, HardAuxiliaryMask
from ham_dist.methods.method import SearchSpace
from tests.support.search_space import method, with_gradient


def ham_of(target: Target, rows: dict[str, int], **settings: object) -> HardAuxiliaryMask:
    """HAM on tables of four columns each."""
    layout = ColumnLayout(dict.fromkeys(rows, 4), rows)
    space = SearchSpace(
        layout, Budget(target, layout), lambda: torch.ones(layout.size), 0, torch.device("cpu")
    )
    return HardAuxiliaryMask(space, HamSettings.model_validate(settings))


def random_gradients(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda mask: torch.randn(len(mask), generator=generator) * 0.05


def test_the_top_mask_has_the_target_at_every_step_and_alpha_is_a_sum_of_gradients() -> None:
    ham = method("ham", Target(columns=4), mask="top", alpha_learning_rate=0.1, penalty=0.5)
    assert ham.mask().sum() == 10, "all are open until the first step: no alpha is above another"
    gradients = random_gradients(0)
    seen: list[torch.Tensor] = []
    total = torch.zeros(10)

    def gradient_at(mask: torch.Tensor) -> torch.Tensor:
        seen.append(mask.clone())
        gradient = gradients(mask)
        total.add_(gradient)
        return gradient

    for number in range(20):
        ham.step(with_gradient(gradient_at))
        mask = ham.mask()
        assert mask.sum() == 4
        assert torch.equal(mask, ham.choice())
        assert ham.near()
        torch.testing.assert_close(ham.tensors()["alpha"], 0.01 - 0.1 * total, rtol=0, atol=1e-6)
        assert torch.equal(torch.sort(total[mask > 0]).values, torch.sort(total).values[:4])
        assert seen[number].sum() == (4 if number else 10)
    assert ham.warning(1) is None


def test_the_average_chooses_and_the_mask_does_not_use_it() -> None:
    """The column that led for long wins over the one that leads at the last step."""
    settings: dict[str, Any] = {"alpha_learning_rate": 1.0, "penalty": 1e-9, "average_steps": 4}
    ham = method("ham", Target(columns=1), **settings)
    steady, late = torch.zeros(10), torch.zeros(10)
    steady[3], late[7] = -0.1, -1.0
    average = torch.full((10,), 0.01, dtype=torch.float64)
    for gradient in [steady] * 8 + [late]:
        ham.step(with_gradient(lambda mask, gradient=gradient: gradient))  # type: ignore[misc]
        average = 0.75 * average + 0.25 * ham.tensors()["alpha"]
    torch.testing.assert_close(ham.tensors()["average"].double(), average, rtol=0, atol=1e-6)
    assert int(ham.tensors()["alpha"].argmax()) == 7
    assert ham.choice().nonzero().flatten().tolist() == [3]
    assert torch.equal(ham.mask(), (ham.tensors()["alpha"] > 0).float())
    assert method("ham", Target(columns=1)).tensors().keys() == {"alpha"}


@pytest.mark.parametrize("mask", ["sign", "top"])
def test_costs_keep_more_score_within_the_bytes(mask: str) -> None:
    """A table of 1,000 rows and five of 100: a large column is worth two small ones and costs ten.

    The loss falls by `worth` with each open column. By alpha, HAM keeps two large columns; by alpha per byte
    all twenty small ones, in the same bytes.
    """
    rows = {"large": 1_000} | {f"small_{number}": 100 for number in range(5)}
    worth = torch.tensor([1.0, 0.95, 0.9, 0.85] + [0.5, 0.45, 0.4, 0.35] * 5)
    for cost_aware, kept_worth in ((False, 1.95), (True, 8.5)):
        ham = ham_of(Target(bytes=8_000), rows, mask=mask, cost_aware=cost_aware)
        for _ in range(300):
            ham.step(with_gradient(lambda mask: -worth))
        choice = ham.choice()
        assert ham.space.budget.used(choice) == 8_000
        assert float(choice @ worth) == pytest.approx(kept_worth)


def test_the_push_is_proportional_to_the_cost_and_leaves_the_gain_per_cost_in_order() -> None:
    rows = {"large": 1_000, "small": 10}
    common = {"cost_aware": True, "alpha_init": 10.0}
    pushed = ham_of(Target(bytes=400), rows, **common, penalty=0.05)
    free = ham_of(Target(bytes=400), rows, **common, penalty=1e-30)
    costs = pushed.space.budget.costs.double()
    for ham in (pushed, free):
        gradients = random_gradients(1)
        for _ in range(10):
            ham.step(with_gradient(gradients))
    push = (free.alpha - pushed.alpha).double()
    torch.testing.assert_close(
        push / costs, torch.full((8,), float(push[0] / costs[0]), dtype=torch.float64), rtol=1e-3, atol=0
    )
    assert float(push.mean()) == pytest.approx(10 * 0.05, rel=1e-3), "the mean push is that of Eq. 3"
    assert torch.equal(pushed.choice(), free.choice())


def test_costs_change_nothing_where_all_columns_cost_the_same() -> None:
    for mask in ("sign", "top"):
        plain, aware = (
            method("ham", Target(columns=5), cost_aware=cost_aware, mask=mask) for cost_aware in (False, True)
        )
        for ham in (plain, aware):
            gradients = random_gradients(2)
            for _ in range(30):
                ham.step(with_gradient(gradients))
        assert torch.equal(plain.tensors()["alpha"], aware.tensors()["alpha"])
        assert torch.equal(plain.choice(), aware.choice())
        assert torch.equal(plain.mask(), aware.mask())
