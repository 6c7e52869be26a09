"""One option of each group against all combinations."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from ham_dist.methods.knapsack import best_options

GROUPS = st.lists(
    st.lists(st.tuples(st.integers(-8, 8), st.integers(0, 9)), min_size=1, max_size=3), min_size=1, max_size=4
)


@given(groups=GROUPS, limit=st.integers(0, 30))
def test_the_choice_is_the_best_of_all_combinations(groups: list[list[tuple[int, int]]], limit: int) -> None:
    scores = [[float(score) for score, _ in group] for group in groups]
    costs = [[cost for _, cost in group] for group in groups]
    fitting = [
        sum(group[option][0] for group, option in zip(groups, options, strict=True))
        for options in product(*(range(len(group)) for group in groups))
        if sum(group[option][1] for group, option in zip(groups, options, strict=True)) <= limit
    ]
    chosen = best_options(scores, costs, limit)
    if not fitting:
        assert chosen is None
        return
    assert chosen is not None
    assert sum(group[option][1] for group, option in zip(groups, chosen, strict=True)) <= limit
    assert sum(group[option][0] for group, option in zip(groups, chosen, strict=True)) == max(fitting)


@given(groups=GROUPS, limit=st.integers(0, 30), least=st.integers(1, 30))
def test_the_choice_costs_at_least_so_much_where_it_can(
    groups: list[list[tuple[int, int]]], limit: int, least: int
) -> None:
    scores = [[float(score) for score, _ in group] for group in groups]
    costs = [[cost for _, cost in group] for group in groups]
    fitting = []
    for options in product(*(range(len(group)) for group in groups)):
        cost = sum(group[option] for group, option in zip(costs, options, strict=True))
        if cost <= limit:
            total = sum(group[option] for group, option in zip(scores, options, strict=True))
            fitting.append((min(cost, least), total))
    chosen = best_options(scores, costs, limit, least)
    assert (chosen is None) == (not fitting)
    if chosen is not None:
        cost = sum(group[option] for group, option in zip(costs, chosen, strict=True))
        total = sum(group[option] for group, option in zip(scores, chosen, strict=True))
        assert cost <= limit
        assert (min(cost, least), total) == max(fitting)


@given(groups=GROUPS, scale=st.integers(10_000, 10_000_000), limit=st.integers(0, 30))
def test_large_costs_are_rounded_up_and_still_fit(
    groups: list[list[tuple[int, int]]], scale: int, limit: int
) -> None:
    scores = [[float(score) for score, _ in group] for group in groups]
    costs = [[cost * scale for _, cost in group] for group in groups]
    chosen = best_options(scores, costs, limit * scale)
    least = sum(min(group) for group in costs)
    assert (chosen is None) == (least > limit * scale)
    if chosen is not None:
        used = sum(group[option] for group, option in zip(costs, chosen, strict=True))
        assert used <= limit * scale
