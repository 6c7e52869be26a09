"""GlobalBatchNorm1d on one rank; test_sharded.py holds it on several against one."""

import pytest
import torch
from torch import nn

from ham_dist.distributed.sharding.batch_norm import GlobalBatchNorm1d, synchronize_batch_norm


def layers(features: int) -> tuple[nn.BatchNorm1d, nn.BatchNorm1d]:
    ours, theirs = (nn.Sequential(nn.BatchNorm1d(features).double()) for _ in range(2))
    synchronize_batch_norm(ours)
    assert isinstance(ours[0], GlobalBatchNorm1d)
    return ours[0], theirs[0]  # type: ignore[return-value]


def test_statistics_and_gradients_are_torchs_also_far_from_zero() -> None:
    ours, theirs = layers(3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        values = torch.randn(64, 3, generator=generator, dtype=torch.float64) * torch.tensor(
            [1.0, 0.1, 3.0]
        ) + torch.tensor([0.0, 4.0, -1.0])
        inputs = [values.clone().requires_grad_() for _ in range(2)]
        outputs = [layer(given) for layer, given in zip((ours, theirs), inputs, strict=True)]
        weights = torch.randn(64, 3, generator=generator, dtype=torch.float64)
        for output in outputs:
            (output.exp() * weights).sum().backward()
        # Mean, variance and their gradients are rounded to 24 bits: 6e-8 of a mean that is 40 standard
        # deviations from 0.
        torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-5)
        gradients = [values.grad for values in inputs]
        assert gradients[1] is not None
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-4 * float(gradients[1].abs().max()))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-5, atol=1e-9)


def test_the_written_out_gradient_is_that_of_the_formula() -> None:
    ours, _ = layers(5)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(32, 5, generator=generator, dtype=torch.float64)
    values = [start.clone().requires_grad_() for _ in range(2)]
    weights = torch.randn(32, 5, generator=generator, dtype=torch.float64)
    (ours(values[0]).sigmoid() * weights).sum().backward()
    formula = (values[1] - values[1].mean(0)) / torch.sqrt(values[1].var(0, correction=0) + ours.eps)
    (formula.sigmoid() * weights).sum().backward()
    # Rounded to 24 bits on the way: 6e-8 of numbers near 1.
    torch.testing.assert_close(values[0].grad, values[1].grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("constant", "rows"), [(0.3, 33), (123.456, 1000), (1e4 / 3, 7)])
def test_a_constant_feature_gives_its_shift_and_no_gradient(constant: float, rows: int) -> None:
    """Sums of these float64 numbers are rounded, so that their mean is not exactly the constant."""
    ours, _ = layers(2)
    values = torch.stack(
        [
            torch.full((rows,), constant, dtype=torch.float64),
            torch.linspace(-1, 1, rows, dtype=torch.float64),
        ],
        dim=1,
    )
    values.requires_grad_()
    output = ours(values)
    assert torch.equal(output[:, 0], torch.zeros(rows, dtype=torch.float64))
    output.pow(3).sum().backward()
    assert values.grad is not None
    assert ours.weight.grad is not None
    assert values.grad[:, 0].abs().max() == 0.0
    assert ours.weight.grad[0] == 0.0
    assert values.grad[:, 1].abs().max() > 0.0


def test_a_batch_of_one_row_leaves_running_statistics_finite() -> None:
    ours, _ = layers(2)
    ours(torch.ones(1, 2, dtype=torch.float64))
    assert ours.running_var is not None
    assert ours.running_var.tolist() == [0.9, 0.9]
