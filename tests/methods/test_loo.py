"""Leave-one-out against the loss of a plain model with the column's values replaced."""

from pathlib import Path

import pytest
import torch

from tests.support.one_shot import PlainLosses, float64_run, plain_losses, scores_of
from tests.support.ranks import run_on_ranks
from tests.support.small_run import small_run
from tests.support.whole_runs import do_run, result


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


def test_a_run_logs_the_passes_and_warns_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 columns: 25 passes over 800 validation samples."""
    monkeypatch.setattr("ham_dist.stages.search.LONG_PASS", 19_999)
    run = small_run(
        search={"method": {"name": "loo", "closed": "shuffled"}},
        pretrain={"max_epochs": 1},
        retrain={"max_epochs": 1},
    )
    do_run(run, tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "search: loo reads 800 validation samples, 25 forward passes over each" in log
    assert "warning: these are 2.0e+04 samples in all, which may take hours." in log
    assert sum(result(tmp_path / "run")["kept_columns"].values()) == 6
