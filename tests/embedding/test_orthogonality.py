"""The closed forms against autograd through the whole table."""

import pytest
import torch

from ham_dist.embedding.orthogonality import Form, damped, gradient_matrix, penalty


def by_autograd(table: torch.Tensor, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    table = table.clone().requires_grad_()
    columns = table if form == "gram" else table / table.norm(dim=0)
    value = (columns.T @ columns - torch.eye(table.shape[1], dtype=table.dtype)).square().sum() / table.shape[
        1
    ] ** 2
    (gradient,) = torch.autograd.grad(value, table)
    return value.detach(), gradient


@pytest.mark.parametrize("form", ["gram", "cosine"])
@pytest.mark.parametrize(("rows", "dim"), [(50, 7), (3, 3), (9, 1)])
def test_value_and_gradient(form: Form, rows: int, dim: int) -> None:
    table = torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    value, gradient = by_autograd(table, form)
    gram = table.T @ table
    torch.testing.assert_close(penalty(gram, form, dim), value)
    torch.testing.assert_close(table @ gradient_matrix(gram, form, dim), gradient)


@pytest.mark.parametrize("form", ["gram", "cosine"])
def test_zero_columns_stay_where_they_are(form: Form) -> None:
    table = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table[:, 2] = 0.0
    step = table @ gradient_matrix(table.T @ table, form, 4)
    assert step.isfinite().all()
    assert torch.equal(step[:, 2], torch.zeros(20, dtype=torch.float64))


def test_orthonormal_columns_have_no_penalty() -> None:
    table, _ = torch.linalg.qr(
        torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )
    gram = table.T @ table
    assert penalty(gram, "gram", 5) < 1e-25
    assert gradient_matrix(gram, "gram", 5).abs().max() < 1e-12


def test_steps_down_the_gradient_make_columns_orthogonal() -> None:
    table = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.2
    before = penalty(table.T @ table, "gram", 6)
    for _ in range(200):
        table = table - 0.5 * table @ gradient_matrix(table.T @ table, "gram", 6)
    assert penalty(table.T @ table, "gram", 6) < 1e-3 * before


def test_a_damped_step_is_a_plain_one_where_it_is_short_and_never_overshoots_where_it_is_long() -> None:
    table = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 3.0
    matrix = gradient_matrix(table.T @ table, "gram", 6)
    product = table @ matrix
    torch.testing.assert_close(
        damped(table, product, matrix, 1e-6), table - 1e-6 * product, rtol=0, atol=1e-5
    )
    assert not torch.equal(damped(table, product, matrix, 1e-6), table)
    before = penalty(table.T @ table, "gram", 6)
    for rate in (1.0, 1e3, 1e12):
        moved = damped(table, product, matrix, torch.full_like(table, rate))
        assert penalty(moved.T @ moved, "gram", 6) < before, rate
        assert moved.abs().max() < 2.0 * table.abs().max()
    short = table * 1e-3
    pulled = gradient_matrix(short.T @ short, "gram", 6)
    grown = damped(short, short @ pulled, pulled, 1e12)
    assert bool((grown.norm(dim=0) > short.norm(dim=0)).all())
    assert bool((grown.norm(dim=0) <= 2.0 * short.norm(dim=0)).all()), (
        "at most twice as long after one step, however large its rate"
    )
