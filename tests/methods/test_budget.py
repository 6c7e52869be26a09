"""What fits into a target, and what is said of one that cannot be met."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ham_dist.config.schema import Target
from ham_dist.errors import TargetError
from ham_dist.methods.budget import Budget
from tests.support.search_space import LAYOUT, ROWS

SCORES = st.lists(st.floats(-1, 1, width=32), min_size=10, max_size=10)


@given(scores=SCORES, columns=st.integers(1, 10))
def test_columns_are_met_exactly_by_the_highest_scores(scores: list[float], columns: int) -> None:
    mask = Budget(Target(columns=columns), LAYOUT).best(torch.tensor(scores))
    assert mask.sum() == columns
    if columns < 10:
        assert min(torch.tensor(scores)[mask > 0]) >= max(torch.tensor(scores)[mask == 0])


@given(scores=SCORES, limit=st.integers(12, 2424))
def test_bytes_are_never_passed_and_no_column_left_out_would_fit(scores: list[float], limit: int) -> None:
    budget = Budget(Target(bytes=limit), LAYOUT)
    mask = budget.best(torch.tensor(scores))
    used = sum(4 * ROWS[table] * len(kept) for table, kept in LAYOUT.split(mask).items())
    assert budget.used(mask) == used <= limit
    left_out = budget.costs[mask == 0]
    assert not len(left_out) or used + int(left_out.min()) > limit


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(columns=11), "columns = 11: more columns than the 10"),
        (Target(bytes=2425), "bytes = 2425: more bytes than the 2424"),
        (Target(bytes=11), "bytes = 11: too small for any column; the smallest takes 12"),
    ],
)
def test_a_target_that_cannot_be_met(target: Target, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Budget(target, LAYOUT)
