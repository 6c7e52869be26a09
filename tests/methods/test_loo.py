"""Leave-one-out against the loss of a plain model with the column's values set to zero."""

import pytest
import torch

from tests.support.one_shot import KEPT, float64_run, plain_losses, scores_of
from tests.support.ranks import run_on_ranks


@pytest.mark.parametrize("model", ["dcnv2", "fm"])
def test_scores_are_the_rise_of_the_loss_on_any_ranks(model: str) -> None:
    """The scores of 1 and 3 ranks have the same bits; lookups are in float32, hence the tolerance."""
    run = float64_run(model)
    cases = {"loo": {"name": "loo"}}
    tables, found = run_on_ranks(1, scores_of, run, cases)[0]
    for _, on_three in run_on_ranks(3, scores_of, run, cases):
        assert torch.equal(on_three["loo"], found["loo"])
    losses = plain_losses(run, tables)
    rows = sum(count for count, _ in losses)

    def mean_loss(mask: torch.Tensor) -> float:
        return sum(count * float(loss(mask).detach()) for count, loss in losses) / rows

    ones = torch.ones(27, dtype=torch.float64)
    rises = [mean_loss(ones - torch.eye(27, dtype=torch.float64)[column]) for column in range(27)]
    wanted = torch.tensor(rises, dtype=torch.float64) - mean_loss(ones)
    torch.testing.assert_close(found["loo"], wanted.float(), rtol=1e-5, atol=1e-8)
    assert len(set(found["loo"].topk(KEPT).indices.tolist()) ^ set(range(KEPT))), "not the first columns"
