"""Drawing from Zipf's distribution over any number of values, without a table of their probabilities."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Zipf:
    """Values 1 .. n, value k with a probability in proportion to k ** -exponent; exact, in a fixed amount of memory.

    Rejection-inversion: a uniform number is turned into a point under a continuous hat by the hat's inverse integral H, rounded to a value, and kept
    unless it lies outside that value's bar; fewer than 2 % have to be drawn again. One object can hold several distributions of
    one exponent: `counts` (...) then broadcasts against the uniform numbers.
    source: Hoermann and Derflinger, Rejection-inversion to generate variates from monotone discrete distributions, ACM TOMACS 6(3), 1996.
    """

    counts: Array
    exponent: float
    left: Array
    """H at the left end of the hat."""
    right: Array
    """H at its right end."""
    slack: Array
    """A point that is not further than this left of its value is inside its bar, whatever the value."""

    @staticmethod
    def over(counts: Any, exponent: float) -> "Zipf":
        """Of `counts` (a number or an array of numbers, each at least 1) values."""
        counts = np.asarray(counts, dtype=np.float64)
        left = np.full_like(counts, _integral(np.array(1.5), exponent) - 1)
        slack = 2 - _inverse(_integral(np.array(2.5), exponent) - 2.0**-exponent, exponent)
        return Zipf(counts, exponent, left, _integral(counts + 0.5, exponent), np.full_like(counts, slack))

    def take(self, places: Any) -> "Zipf":
        """The distributions at `places` of `counts`, one for each."""
        return Zipf(
            self.counts[places], self.exponent, self.left[places], self.right[places], self.slack[places]
        )

    def invert(self, uniform: Array) -> tuple[Array, Array]:
        """Values (float64, whole) that `uniform` numbers in [0, 1) lead to, and whether each may be kept."""
        height = self.right + uniform * (self.left - self.right)
        point = _inverse(height, self.exponent)
        values = np.clip(np.floor(point + 0.5), 1, self.counts)
        kept = values - point <= self.slack
        unsure = np.nonzero(~kept)
        edge = values[unsure]
        kept[unsure] = height[unsure] >= _integral(edge + 0.5, self.exponent) - np.exp(
            -self.exponent * np.log(edge)
        )
        return values, kept

    def draw(self, uniform: Callable[[Array], Array], rows: int) -> Array:
        """(rows,) int32 values of the one distribution; `uniform` gives fresh numbers in [0, 1) for the rows at the given places."""
        places = np.arange(rows)
        drawn = np.empty(rows, dtype=np.int32)
        while len(places):
            values, kept = self.invert(uniform(places))
            drawn[places[kept]] = values[kept]
            places = places[~kept]
        return drawn

    def chances(self, limit: int) -> Array:
        """(min(n, limit),) probabilities of the values; those of values `limit` apart are added up. Of the one distribution."""
        count = int(self.counts)
        total = np.zeros(min(count, limit))
        for first in range(1, count + 1, limit):
            weights = np.arange(first, min(first + limit, count + 1), dtype=np.float64) ** -self.exponent
            total[: len(weights)] += weights
        return total / total.sum()


def _integral(x: Array, exponent: float) -> Array:
    """H: the integral of t ** -exponent from 1 to x."""
    rest = 1 - exponent
    return np.log(x) if rest == 0 else np.expm1(rest * np.log(x)) / rest


def _inverse(height: Array, exponent: float) -> Array:
    """The x at which H is `height`; infinite where the tail is too thin for float64 to tell it from nothing."""
    rest = 1 - exponent
    if rest == 0:
        return np.exp(height)
    with np.errstate(divide="ignore", over="ignore"):
        return np.exp(np.log1p(rest * height) / rest)
