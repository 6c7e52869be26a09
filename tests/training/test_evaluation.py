"""AUC against its definition, and logits that float32 probabilities could not tell apart."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ham_dist.training.evaluation import area_under_roc


def by_pairs(scores: torch.Tensor, labels: torch.Tensor) -> float:
    positives, negatives = scores[labels == 1].double(), scores[labels == 0].double()
    difference = positives[:, None] - negatives[None, :]
    return float((difference > 0).double().mean() + (difference == 0).double().mean() / 2)


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=60))
def test_auc_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([score for score, _ in rows]).float()
    labels = torch.tensor([label for _, label in rows]).float()
    wanted = by_pairs(scores, labels) if 0 < labels.sum() < len(rows) else 0.5
    assert abs(area_under_roc(scores, labels) - wanted) < 1e-12


def test_large_logits_keep_their_order() -> None:
    scores = torch.tensor([40.0, 50.0, 60.0, 70.0])
    assert torch.sigmoid(scores).unique().numel() == 1
    assert area_under_roc(scores, torch.tensor([0.0, 0.0, 1.0, 1.0])) == 1.0
