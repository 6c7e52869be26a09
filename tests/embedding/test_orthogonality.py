"""The closed forms against autograd through the whole table."""

import pytest
import torch

from ham_dist.embedding.orthogonality import Form, gradient_matrix, penalty


def by_autograd(table: torch.Tensor, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    table = table.clone().requires_grad_()
    columns = table if form == "gram" else table / table.norm(dim=0)
    value = (columns.T @ columns - torch.eye(table.shape[1], dtype=table.dtype)).square().sum() / table.shape[1] ** 2
    (gradient,) = torch.autograd.grad(value, table)
    return value.detach(), gradient


@pytest.mark.parametrize("form", ["gram", "cosine"])
@pytest.mark.parametrize(("rows", "width"), [(50, 7), (3, 3), (9, 1)])
def test_value_and_gradient(form: Form, rows: int, width: int) -> None:
    table = torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    value, gradient = by_autograd(table, form)
    gram = table.T @ table
    torch.testing.assert_close(penalty(gram, form, width), value)
    torch.testing.assert_close(table @ gradient_matrix(gram, form, width), gradient)


@pytest.mark.parametrize("form", ["gram", "cosine"])
def test_zero_columns_stay_where_they_are(form: Form) -> None:
    table = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table[:, 2] = 0.0
    step = table @ gradient_matrix(table.T @ table, form, 4)
    assert step.isfinite().all()
    assert torch.equal(step[:, 2], torch.zeros(20, dtype=torch.float64))


def test_orthonormal_columns_have_no_penalty() -> None:
    table, _ = torch.linalg.qr(torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    gram = table.T @ table
    assert penalty(gram, "gram", 5) < 1e-25
    assert gradient_matrix(gram, "gram", 5).abs().max() < 1e-12


def test_steps_down_the_gradient_make_columns_orthogonal() -> None:
    table = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.2
    before = penalty(table.T @ table, "gram", 6)
    for _ in range(200):
        table = table - 0.5 * table @ gradient_matrix(table.T @ table, "gram", 6)
    assert penalty(table.T @ table, "gram", 6) < 1e-3 * before
