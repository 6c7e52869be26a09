"""Samples from Zipf distributions over any number of values, without a table of probabilities."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Zipf:
    """Zipf distribution over 1 .. n: value k has a probability proportional to k ** -exponent.

    Exact, in constant memory, by rejection-inversion: the inverse of the hat function's integral H maps a
    uniform number to a point, which is rounded to a value. The value is accepted unless the point is outside
    its bar; fewer than 2 % are rejected. One object can hold several distributions with the same exponent:
    `counts` (...) then broadcasts against the uniform numbers.

    Attributes:
        counts: n, (...) float64.
        exponent: Exponent of all distributions.
        left: H at the left end of the hat, (...).
        right: H at the right end of the hat, (...).
        slack: A point at most this far left of its value is inside the bar, for every value, (...).
    Source:
        Hoermann and Derflinger, Rejection-inversion to generate variates from monotone discrete
        distributions, ACM TOMACS 6(3), 1996.
    """

    counts: Array
    exponent: float
    left: Array
    right: Array
    slack: Array

    @staticmethod
    def over(counts: Any, exponent: float) -> "Zipf":
        """Distributions over 1 .. `counts` (a number or an array of numbers, each at least 1)."""
        counts = np.asarray(counts, dtype=np.float64)
        left = np.full_like(counts, _integral(np.array(1.5), exponent) - 1)
        slack = 2 - _inverse(_integral(np.array(2.5), exponent) - 2.0**-exponent, exponent)
        return Zipf(counts, exponent, left, _integral(counts + 0.5, exponent), np.full_like(counts, slack))

    def take(self, places: Any) -> "Zipf":
        """The distributions at the indices `places` of `counts`."""
        return Zipf(
            self.counts[places], self.exponent, self.left[places], self.right[places], self.slack[places]
        )

    def invert(self, uniform: Array) -> tuple[Array, Array]:
        """Maps `uniform` numbers in [0, 1) to values (whole float64 numbers), and returns which to accept."""
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
        """Draws values from a single distribution.

        Args:
            uniform: Returns new random numbers in [0, 1) for the rows at the given indices.
            rows: Number of values.
        Returns:
            (rows,) int32.
        """
        places = np.arange(rows)
        drawn = np.empty(rows, dtype=np.int32)
        while len(places):
            values, kept = self.invert(uniform(places))
            drawn[places[kept]] = values[kept]
            places = places[~kept]
        return drawn

    def chances(self, limit: int) -> Array:
        """Probabilities of the values of a single distribution, (min(n, limit),).

        Probabilities of values that are a multiple of `limit` apart are added up.
        """
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
    """The x with H(x) = `height`; infinite if the tail is too thin for float64."""
    rest = 1 - exponent
    if rest == 0:
        return np.exp(height)
    with np.errstate(divide="ignore", over="ignore"):
        return np.exp(np.log1p(rest * height) / rest)
