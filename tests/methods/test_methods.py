"""Each method against its own words; HAM against Eq. 3 computed by hand."""

import pytest
import torch

from ham_dist.config.target import Target
from ham_dist.methods.registry import METHODS
from tests.support.search_space import DIMS, LAYOUT, method, with_gradient


def test_ham_follows_equation_3() -> None:
    ham = method("ham", Target(columns=6), alpha_init=0.01, alpha_learning_rate=0.1, penalty=0.001)
    alpha = torch.full((10,), 0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        gradient = torch.randn(10, generator=generator) * 0.05
        mask = (alpha > 0).float()
        seen: list[torch.Tensor] = []

        def gradient_at(
            at: torch.Tensor, gradient: torch.Tensor = gradient, seen: list[torch.Tensor] = seen
        ) -> torch.Tensor:
            seen.append(at.clone())
            return gradient

        ham.step(with_gradient(gradient_at))
        alpha = alpha - 0.1 * gradient - 0.001 * torch.sign(mask.sum() - 6)
        assert len(seen) == 1
        assert torch.equal(seen[0], mask)
        torch.testing.assert_close(
            ham.tensors()["alpha"], alpha, rtol=0, atol=1e-7
        )  # the two terms are added up in another order
        alpha = ham.tensors()["alpha"].clone()
        assert torch.equal(ham.mask(), (alpha > 0).float())
        assert ham.choice().sum() == 6


def test_ham_starts_with_every_column_open_and_is_pushed_to_the_target_by_no_gradient_at_all() -> None:
    ham = method("ham", Target(columns=6), alpha_init=0.01, penalty=0.004)
    assert ham.mask().sum() == 10
    for _ in range(3):
        ham.step(with_gradient(torch.zeros_like))
    assert (
        ham.mask().sum() == 0
    )  # all alphas are equal: they cross zero together, and the penalty turns round
    ham.step(with_gradient(torch.zeros_like))
    assert ham.mask().sum() == 10


def test_a_useful_column_comes_back() -> None:
    """A closed column that would lower the loss has a negative gradient, and opens again (section 3.4)."""
    ham = method("ham", Target(columns=5), alpha_init=0.01, alpha_learning_rate=1.0, penalty=1e-6)
    ham.step(with_gradient(lambda mask: torch.full((10,), 0.02)))
    assert ham.mask().sum() == 0
    wanted = torch.zeros(10)
    wanted[3] = -0.02
    ham.step(with_gradient(lambda mask: wanted))
    assert ham.mask().tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_uniform_deals_columns_in_rounds() -> None:
    counts = {}
    for columns in range(1, 11):
        kept = LAYOUT.split(method("uniform", Target(columns=columns)).choice())
        assert all(part.tolist() == list(range(len(part))) for part in kept.values())
        counts[columns] = [len(kept[table]) for table in DIMS]
    assert counts[6] == [2, 2, 2]
    assert counts[7] == [3, 2, 2], (
        "what is left over goes to the table with most rows, and gender has no third column"
    )
    assert counts[1] == [1, 0, 0]
    assert counts[10] == [4, 2, 4]


def test_magnitude_takes_the_longest_columns() -> None:
    norms = torch.tensor([1.0, 9, 2, 8, 3, 7, 4, 6, 5, 0])
    kept = LAYOUT.split(method("magnitude", Target(columns=4), norms=norms).choice())
    assert {table: part.tolist() for table, part in kept.items()} == {
        "user": [1, 3],
        "gender": [1],
        "movie": [1],
    }


def test_random_draws_from_the_seed() -> None:
    draws = [method("random", Target(columns=5), seed=seed).choice() for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(draws[0], draws[1])
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
    many = torch.stack([method("random", Target(columns=5), seed=seed).choice() for seed in range(400)])
    assert ((many.mean(dim=0) - 0.5).abs() < 0.1).all(), "every column has the same chance"


BUDGETED = [name for name, kind in METHODS.items() if kind.has_budget and not kind.chooses_bands]


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize("target", [Target(columns=1), Target(columns=10), Target(bytes=500)])
def test_every_method_keeps_to_its_target(name: str, target: Target) -> None:
    chooser = method(name, target)
    used = chooser.space.budget.used(chooser.choice())
    assert used == target.columns if target.columns else 0 < used <= 500
