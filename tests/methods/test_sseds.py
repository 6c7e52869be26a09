"""SSEDS against autograd on a plain model, on several ranks, and on gradients chosen by hand."""

import pytest
import torch

from ham_dist.config.target import Target
from ham_dist.methods.method import MaskLoss
from tests.support.one_shot import PlainLosses, float64_run, plain_losses, scores_of
from tests.support.ranks import run_on_ranks
from tests.support.search_space import method, with_gradient

STATISTICS = ["abs_mean", "mean_abs", "mean_square", "signed"]


@pytest.mark.parametrize("model", ["dcnv2", "autoint"])
def test_scores_are_those_of_autograd_on_any_ranks(model: str) -> None:
    """The scores of 1 and 3 ranks have the same bits; lookups are in float32, hence the tolerance."""
    run = float64_run(model)
    cases: dict[str, dict[str, str]] = {statistic: {"statistic": statistic} for statistic in STATISTICS}
    cases |= {closed: {"closed": closed, "statistic": "signed"} for closed in ("mean", "shuffled")}
    cases = {label: {"name": "sseds", **keys} for label, keys in cases.items()}
    tables, found = run_on_ranks(1, scores_of, run, cases)[0]
    for _, on_three in run_on_ranks(3, scores_of, run, cases):
        assert all(torch.equal(on_three[name], scores) for name, scores in found.items())
    weights, of_batch = plain_gradients(plain_losses(run, tables))
    wanted = {
        "abs_mean": (weights * of_batch).sum(0).abs(),
        "mean_abs": (weights * of_batch.abs()).sum(0),
        "mean_square": (weights * of_batch.square()).sum(0),
        "signed": -(weights * of_batch).sum(0),
    }
    for closed in ("mean", "shuffled"):
        weights, of_batch = plain_gradients(plain_losses(run, tables, closed))
        wanted[closed] = -(weights * of_batch).sum(0)
    for statistic, scores in wanted.items():
        torch.testing.assert_close(found[statistic], scores.float(), rtol=1e-5, atol=1e-7, msg=statistic)


def plain_gradients(losses: PlainLosses) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of each batch in the rows, (n, 1), and its gradient of the mask at ones, (n, 27)."""
    gradients = []
    for _, loss in losses:
        mask = torch.ones(27, dtype=torch.float64, requires_grad=True)
        gradients.append(torch.autograd.grad(loss(mask), mask)[0])
    rows = torch.tensor([[float(count)] for count, _ in losses], dtype=torch.float64)
    return rows / rows.sum(), torch.stack(gradients)


@pytest.mark.parametrize(
    ("statistic", "first", "second"),
    [("abs_mean", 0.0, 0.5), ("mean_abs", 3.0, 0.5), ("mean_square", 12.0, 0.25), ("signed", 0.0, 0.5)],
)
def test_every_statistic_weighs_rows_alike(statistic: str, first: float, second: float) -> None:
    """A batch of 3 rows and one of 1: gradients 2 and -6 of column 0, -0.5 of column 1, 0 of the others."""
    chooser = method("sseds", Target(columns=1), statistic=statistic)
    masks = []

    def loss(rows: int, of_first: float) -> MaskLoss:
        def gradient_at(mask: torch.Tensor) -> torch.Tensor:
            masks.append(mask.clone())
            return torch.tensor([of_first, -0.5, *[0.0] * 8])

        return MaskLoss(gradient_at, with_gradient(torch.zeros_like).at, rows)

    # 3 * 2 - 6 = 0; (3 * 2 + 6) / 4 = 3; (3 * 4 + 36) / 4 = 12.
    chooser.score(iter([loss(3, 2.0), loss(1, -6.0)]))
    assert chooser.tensors()["scores"].tolist() == [first, second, *[0.0] * 8]
    assert all(mask.tolist() == [1.0] * 10 for mask in masks)
    assert chooser.choice().tolist().index(1.0) == (1 if second > first else 0)


def test_the_split_is_a_setting() -> None:
    assert method("sseds", Target(columns=1)).batches == "validation"
    assert method("sseds", Target(columns=1), batches="training").batches == "training"
