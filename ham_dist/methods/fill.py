"""Filling a limit: the subset with the highest value whose cost is within bounds (a 0-1 knapsack)."""

import torch

STATES = 4096
"""Sums of costs that are remembered. With more, of those that differ by less than 1 / 4096 of the upper bound
only the one with the highest value is."""


def best_within(values: torch.Tensor, costs: torch.Tensor, least: int, most: int) -> torch.Tensor | None:
    """Returns the subset of n items with the highest total value whose cost is from `least` to `most`.

    Exact while the subsets have at most `STATES` different costs.

    Args:
        values: (n,) float64, of any sign.
        costs: (n,) int64, positive.
        least: Lower bound of the cost.
        most: Upper bound of the cost, at least 0.
    Returns:
        (n,) bool; None if no subset was found.
    Source: Bellman's dynamic program over the sums of costs, with the states of equal sum merged; Kellerer,
        Pferschy and Pisinger, Knapsack Problems (2004), section 2.3.
    """
    sums, totals = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    steps = []
    for cost, value in zip(costs.tolist(), values.tolist(), strict=True):
        before = len(sums)
        sums, totals = torch.cat([sums, sums + cost]), torch.cat([totals, totals + value])
        kept = _distinct(sums, totals, most)
        steps.append((before, kept))
        sums, totals = sums[kept], totals[kept]
    within = torch.nonzero(sums >= least).flatten()
    if not len(within):
        return None
    state = int(within[totals[within].argmax()])
    chosen = torch.zeros(len(costs), dtype=torch.bool)
    for item, (before, kept) in reversed(list(enumerate(steps))):
        state = int(kept[state])
        chosen[item] = state >= before
        state -= before * (state >= before)
    return chosen


def _distinct(sums: torch.Tensor, totals: torch.Tensor, most: int) -> torch.Tensor:
    """Numbers of the states to keep: for each sum up to `most`, the one with the highest total."""
    states = torch.nonzero(sums <= most).flatten()
    states = states[torch.sort(totals[states], descending=True, stable=True).indices]
    kept = sums[states] if len(states) <= STATES else sums[states] * STATES // most
    kept, order = torch.sort(kept, stable=True)
    first = torch.ones(len(kept), dtype=torch.bool)
    first[1:] = kept[1:] != kept[:-1]
    return states[order][first]
