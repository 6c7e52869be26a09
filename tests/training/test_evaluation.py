"""AUC against its definition, and logits that float32 probabilities could not tell apart."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ham_dist.distributed.ranks import process_group
from ham_dist.training.evaluation import area_under_roc, ordered_pairs
from tests.support.ranks import run_on_ranks


def by_pairs(scores: torch.Tensor, labels: torch.Tensor) -> float:
    positives, negatives = scores[labels == 1].double(), scores[labels == 0].double()
    difference = positives[:, None] - negatives[None, :]
    return float((difference > 0).double().mean() + (difference == 0).double().mean() / 2)


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=60))
def test_auc_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([score for score, _ in rows]).float()
    labels = torch.tensor([label for _, label in rows]).float()
    found = area_under_roc(scores, labels)
    if 0 < labels.sum() < len(rows):
        assert found is not None
        assert abs(found - by_pairs(scores, labels)) < 1e-12
    else:
        assert found is None


def test_large_logits_keep_their_order() -> None:
    scores = torch.tensor([40.0, 50.0, 60.0, 70.0])
    assert torch.sigmoid(scores).unique().numel() == 1
    assert area_under_roc(scores, torch.tensor([0.0, 0.0, 1.0, 1.0])) == 1.0


COUNTS = st.integers(0, 2**60 // 20)


@given(st.lists(st.tuples(COUNTS, COUNTS), max_size=10), COUNTS)
@example([(3 * 10**9, 2 * 10**9), (2 * 10**9, 3 * 10**9)], 10**9)
def test_pairs_of_more_rows_than_memory_holds_are_counted_exactly(
    counts: list[tuple[int, int]], lower: int
) -> None:
    expected, below = 0, 2 * lower
    for positives, negatives in counts:
        expected += positives * (below + negatives)
        below += 2 * negatives
    rows = torch.tensor(counts, dtype=torch.int64).reshape(-1, 2)
    assert ordered_pairs(rows[:, 0], rows[:, 1], lower) == expected


def scored_rows(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(5_000, generator=generator)
    if kind == "ties":
        scores = (3 * scores).round()
    elif kind == "equal":
        scores = torch.zeros(5_000)
    return scores, (torch.rand(5_000, generator=generator) < torch.sigmoid(scores)).float()


def auc_of_parts(kind: str, edges: list[int], order: list[int]) -> float | None:
    """AUC of `scored_rows` cut at `edges`, of which each rank has the part that `order` gives it."""
    scores, labels = scored_rows(kind)
    number = order[process_group.rank()]
    part = slice(edges[number], edges[number + 1])
    return area_under_roc(scores[part], labels[part])


@pytest.mark.parametrize("kind", ["different", "ties", "equal"])
@pytest.mark.parametrize(
    ("edges", "order"),
    [([0, 2_000, 5_000], [0, 1]), ([0, 2_000, 5_000], [1, 0]), ([0, 7, 7, 5_000], [2, 0, 1])],
    ids=str,
)
def test_auc_is_the_same_however_the_rows_lie_on_ranks(kind: str, edges: list[int], order: list[int]) -> None:
    alone = area_under_roc(*scored_rows(kind))
    assert alone == pytest.approx(by_pairs(*scored_rows(kind)), abs=1e-12)
    assert run_on_ranks(len(order), auc_of_parts, kind, edges, order) == [alone] * len(order)
