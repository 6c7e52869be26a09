"""What fits into a target, and what is said of one that cannot be met."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ham_dist.config.target import Target
from ham_dist.embedding.mask import ColumnLayout
from ham_dist.errors import TargetError
from ham_dist.export.codecs.column_bytes import served_layout
from ham_dist.export.codecs.registry import codec_of
from ham_dist.methods.budget import Budget
from ham_dist.methods.fill import best_within
from tests.support.search_space import DIMS, LAYOUT, ROWS

SCORES = st.lists(st.floats(-1, 1, width=32), min_size=10, max_size=10)


@given(scores=SCORES, columns=st.integers(1, 10))
def test_columns_are_met_exactly_by_the_highest_scores(scores: list[float], columns: int) -> None:
    mask = Budget(Target(columns=columns), LAYOUT).best(torch.tensor(scores))
    assert mask.sum() == columns
    if columns < 10:
        assert min(torch.tensor(scores)[mask > 0]) >= max(torch.tensor(scores)[mask == 0])


@given(scores=SCORES, limit=st.integers(12, 2424), per_cost=st.booleans())
def test_bytes_are_never_passed_and_no_column_left_out_would_fit(
    scores: list[float], limit: int, per_cost: bool
) -> None:
    budget = Budget(Target(bytes=limit), LAYOUT)
    mask = budget.best(torch.tensor(scores), per_cost=per_cost)
    used = sum(4 * ROWS[table] * len(kept) for table, kept in LAYOUT.split(mask).items())
    assert budget.used(mask) == used <= limit
    left_out = budget.costs[mask == 0]
    assert not len(left_out) or used + int(left_out.min()) > limit


SUBSETS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=10)))


@given(
    scores=SCORES,
    rows=st.lists(st.integers(1, 60), min_size=3, max_size=3),
    share=st.floats(0, 1),
    per_cost=st.booleans(),
)
def test_bytes_are_met_within_a_hundredth_by_the_best_choice_that_is_worth_it(
    scores: list[float], rows: list[int], share: float, per_cost: bool
) -> None:
    """Against all choices of columns; the score that one keeps counts from the lowest score."""
    layout = ColumnLayout(DIMS, dict(zip(DIMS, rows, strict=True)))
    least, most = (
        4 * min(rows),
        4 * sum(DIMS[table] * count for table, count in layout.num_embeddings.items()),
    )
    budget = Budget(Target(bytes=round(least + share * (most - least))), layout)
    mask = budget.best(torch.tensor(scores), per_cost=per_cost)
    greedy = budget.greedy(torch.tensor(scores), per_cost=per_cost)
    values = torch.tensor(scores, dtype=torch.float64) - min(scores)
    costs, kept = SUBSETS.double() @ budget.costs.double(), SUBSETS.double() @ values
    within = (costs >= 0.99 * budget.limit) & (costs <= budget.limit)
    is_worth_it = bool((kept[within] >= 0.95 * float(greedy.double() @ values) + 1e-9).any())
    is_not = not bool((kept[within] >= 0.95 * float(greedy.double() @ values) - 1e-9).any())
    if budget.used(greedy) >= 0.99 * budget.limit or is_not:
        assert torch.equal(mask, greedy)
    elif is_worth_it:
        assert 0.99 * budget.limit <= budget.used(mask) <= budget.limit
        assert float(mask.double() @ values) >= 0.95 * float(greedy.double() @ values) - 1e-9


UNEQUAL = {"user": [0.1, 0.6, 0.0, 0.2], "gender": [0.7, 0.65], "movie": [0.9, 0.8, 0.05, 0.0]}
"""Scores of columns that take 400, 12 and 200 bytes."""


def test_a_gap_is_filled_by_exchanging_columns_for_as_much_score_as_possible() -> None:
    """The greedy choice takes only 624 of 812 bytes.

    After two columns of movie and those of gender, no user column fits. If one of gender's
    columns is left out, the best user column fits in place of the third movie column.
    """
    scores = torch.tensor([score for table in DIMS for score in UNEQUAL[table]])
    budget = Budget(Target(bytes=812), LAYOUT)
    greedy, best = (LAYOUT.split(choose(scores)) for choose in (budget.greedy, budget.best))
    assert {table: len(kept) for table, kept in greedy.items()} == {"user": 0, "gender": 2, "movie": 3}
    assert {table: kept.tolist() for table, kept in best.items()} == {
        "user": [1], "gender": [0], "movie": [0, 1],
    }  # fmt: skip


def test_a_gap_stays_if_filling_it_gives_up_too_much_score() -> None:
    """One user column would take all of 400 bytes, in place of four others with a higher score each."""
    layout = ColumnLayout({"user": 1, "movie": 4}, {"user": 100, "movie": 22})
    budget = Budget(Target(bytes=400), layout)
    kept = layout.split(budget.best(torch.tensor([0.5, 0.9, 0.8, 0.7, 0.0])))
    assert {table: columns.tolist() for table, columns in kept.items()} == {"user": [], "movie": [0, 1, 2, 3]}


@given(
    items=st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 30)), min_size=1, max_size=8),
    bounds=st.tuples(st.integers(0, 120), st.integers(0, 120)).map(sorted),
)
def test_the_best_subset_within_bounds_is_that_of_all_subsets(
    items: list[tuple[float, int]], bounds: list[int]
) -> None:
    values = torch.tensor([value for value, _ in items], dtype=torch.float64)
    costs = torch.tensor([cost for _, cost in items])
    subsets = SUBSETS[: 2 ** len(items), 10 - len(items) :].double()
    within = [
        float(subset @ values)
        for subset in subsets
        if bounds[0] <= float(subset @ costs.double()) <= bounds[1]
    ]
    found = best_within(values, costs, *bounds)
    if not within:
        assert found is None
    else:
        assert found is not None
        assert bounds[0] <= int(costs[found].sum()) <= bounds[1]
        assert float(values[found].sum()) == pytest.approx(max(within), abs=1e-12)


def test_more_sums_than_are_remembered_still_give_a_subset_within_a_hundredth() -> None:
    generator = torch.Generator().manual_seed(0)
    costs = torch.randint(10**6, 10**9, (60,), generator=generator)
    values, most = torch.rand(60, generator=generator, dtype=torch.float64), 12 * 10**9
    found = best_within(values, costs, round(0.99 * most), most)
    assert found is not None
    assert 0.99 * most <= int(costs[found].sum()) <= most
    by_density = torch.sort(values / costs, descending=True).indices
    greedy = by_density[torch.cumsum(costs[by_density], 0) <= most]
    assert float(values[found].sum()) >= 0.99 * float(values[greedy].sum())


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


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int6", "int4"])
@given(scores=SCORES, share=st.floats(0.5, 1))
def test_bytes_in_a_precision_are_those_of_the_bundle(
    precision: Any, scores: list[float], share: float
) -> None:
    codec = codec_of(precision)
    whole = sum(codec.stored_bytes(ROWS[table], dim) for table, dim in DIMS.items())
    target = Target(bytes=round(share * whole), precision=precision)
    layout = served_layout(LAYOUT, precision)
    mask = Budget(target, layout).best(torch.tensor(scores))
    dims = {table: len(kept) for table, kept in LAYOUT.split(mask).items()}
    stored = sum(codec.stored_bytes(ROWS[table], dim) for table, dim in dims.items() if dim)
    assert target.bytes is not None
    assert stored <= target.bytes
    # What is left over is less than a column and the padding that could be needed.
    padding = layout.padding_bytes * len(DIMS)
    closed = [layout.column_bytes[table] for table, dim in dims.items() if dim < DIMS[table]]
    assert not closed or stored + min(closed) > target.bytes - padding


def test_without_a_precision_bytes_are_those_of_training() -> None:
    assert served_layout(LAYOUT, None) is LAYOUT
    assert served_layout(LAYOUT, "fp32").column_bytes == LAYOUT.column_bytes
    assert served_layout(LAYOUT, "fp32").padding_bytes == 0
    assert LAYOUT.padding_bytes == 0
    with pytest.raises(ValueError, match="is the codec in which `bytes` are counted"):
        Target(columns=3, precision="int8")
    assert Target(bytes=7, precision="int8").label == "bytes-7-int8"
    assert "precision" not in Target(bytes=7).model_dump()
