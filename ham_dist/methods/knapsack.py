"""One option of each group, with the highest total score within a budget (multiple-choice knapsack)."""

import math
from collections.abc import Sequence

STATES = 4096
"""Costs above this many distinct totals are rounded up to multiples, so that time and memory stay bounded."""


def best_options(
    scores: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], limit: int, least: int = 0
) -> list[int] | None:
    """Returns the number of the option chosen in each group; None if even the cheapest ones do not fit.

    Exact while `limit` is at most STATES; above it, costs are rounded up to multiples of limit / STATES, so
    that the choice still fits. Ties: the option with the lower cost, then the lower number.

    Args:
        scores: By group and option.
        costs: As `scores`, at least 0.
        limit: Most that the chosen options may cost together.
        least: Least that they should cost together. If no options that fit do, those with the highest cost.
    """
    if sum(min(group) for group in costs) > limit:
        return None
    unit = -(-limit // STATES) if limit > STATES else 1
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for number, (group, prices) in enumerate(zip(scores, costs, strict=True)):
        # What the cheapest options of the groups to come need is kept free, in their unrounded costs.
        later = sum(min(of_group) for of_group in costs[number + 1 :])
        found: dict[int, tuple[float, tuple[int, ...]]] = {}
        for used, (total, chosen) in best.items():
            for option, (score, price) in enumerate(zip(group, prices, strict=True)):
                cost = used + -(-price // unit) * unit
                if cost + later > limit and price != min(prices):
                    continue
                value = (total + score, (*chosen, option))
                if cost not in found or value[0] > found[cost][0]:
                    found[cost] = value
        best = found if least else _not_dominated(found)
    fitting = [
        (min(cost, least), total, chosen)
        for total, chosen in best.values()
        if (cost := sum(prices[option] for prices, option in zip(costs, chosen, strict=True))) <= limit
    ]
    if not fitting:
        return [min(range(len(prices)), key=prices.__getitem__) for prices in costs]
    return list(max(fitting, key=lambda one: one[:2])[2])


def _not_dominated(
    found: dict[int, tuple[float, tuple[int, ...]]],
) -> dict[int, tuple[float, tuple[int, ...]]]:
    """Leaves out totals that cost more than another and score no higher."""
    kept: dict[int, tuple[float, tuple[int, ...]]] = {}
    best = -math.inf
    for cost, value in sorted(found.items()):
        if value[0] > best:
            kept[cost], best = value, value[0]
    return kept
