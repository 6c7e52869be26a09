"""Leave-one-out against the loss of a plain model with the column's values replaced."""

import pytest
import torch

from tests.support.one_shot import PlainLosses, float64_run, plain_losses, scores_of
from tests.support.ranks import run_on_ranks


@pytest.mark.parametrize("model", ["dcnv2", "fm"])
def test_scores_are_the_rise_of_the_loss_on_any_ranks(model: str) -> None:
    """The scores of 1 and 3 ranks have the same bits; lookups are in float32, hence the tolerance."""
    run = float64_run(model)
    cases = {closed: {"name": "loo", "closed": closed} for closed in ("zero", "mean", "shuffled")}
    tables, found = run_on_ranks(1, scores_of, run, cases)[0]
    for _, on_three in run_on_ranks(3, scores_of, run, cases):
        assert all(torch.equal(on_three[closed], scores) for closed, scores in found.items())
    for closed, scores in found.items():
        losses = plain_losses(run, tables, closed)
        rises = [
            mean_loss(losses, 1 - torch.eye(27, dtype=torch.float64)[column])
            - mean_loss(losses, torch.ones(27, dtype=torch.float64))
            for column in range(27)
        ]
        torch.testing.assert_close(scores, torch.tensor(rises), rtol=1e-5, atol=1e-8, msg=closed)
    assert not torch.allclose(found["zero"], found["mean"])
    assert not torch.allclose(found["zero"], found["shuffled"])


def mean_loss(losses: PlainLosses, mask: torch.Tensor) -> float:
    """Over all rows of all batches."""
    total = sum(count * float(loss(mask).detach()) for count, loss in losses)
    return total / sum(count for count, _ in losses)
