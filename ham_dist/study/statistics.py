"""Means, intervals and paired tests over seeds (docs/protocol.md, section "Statistics").

Needs scipy, for the distribution of t.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TypeVar

from ham_dist.errors import ReportError

LEVEL = 0.95
"""Confidence level of all intervals."""
ROUNDING = 1e-12
"""Standard deviation below which differences are equal up to rounding. AUCs on n rows are multiples of
1 / (2 n^2) or more, so real differences are far above it."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Mean:
    """The mean over seeds.

    Attributes:
        n: Number of values.
        mean: Their mean.
        sd: Their standard deviation, with n - 1; None for one value.
        low: Lower end of the interval of the mean, by t; None for one value.
        high: Upper end.
        best: The highest value.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    best: float


@dataclass(frozen=True)
class Paired:
    """A two-sided paired t-test of the differences `first - second` over the seeds that both have.

    Attributes:
        n: Number of pairs.
        mean: Mean difference; None without a pair.
        sd: Standard deviation of the differences; None with fewer than two pairs.
        low: Lower end of the interval of the mean difference, by t; None with fewer than two pairs.
        high: Upper end.
        t: Test statistic; None if there is no test.
        p: Its p-value; None if there is no test.
        wins: Pairs in which the first is above the second.
        ties: Pairs in which both are equal.
        no_test: Why there is no test; empty if there is one.
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    t: float | None
    p: float | None
    wins: int
    ties: int
    no_test: str = ""

    @property
    def losses(self) -> int:
        """Pairs in which the first is below the second."""
        return self.n - self.wins - self.ties

    def not_worse(self, margin: float) -> bool | None:
        """Returns True if the first is not worse than the second by `margin` or more; None if unknown.

        That is, if the lower end of the interval is above -margin.
        """
        return None if self.low is None else self.low > -margin


def mean_of(values: Sequence[float]) -> Mean | None:
    """Returns the mean of finite values with its interval; None without a value."""
    n = len(values)
    if n == 0:
        return None
    mean, sd, half = _spread(values)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Mean(n, mean, sd, low, high, max(values))


def paired(first: Mapping[Key, float], second: Mapping[Key, float]) -> Paired:
    """Compares two arms over the seeds that both have.

    Args:
        first: Finite values by seed. A seed without a value, as of a failed run, is absent.
        second: The same for the other arm.
    """
    differences = [first[seed] - second[seed] for seed in first if seed in second]
    n = len(differences)
    wins = sum(difference > 0 for difference in differences)
    ties = sum(difference == 0 for difference in differences)
    if n == 0:
        return Paired(0, None, None, None, None, None, None, 0, 0, "no pairs")
    mean, sd, half = _spread(differences)
    if sd is None or half is None:
        return Paired(n, mean, None, None, None, None, None, wins, ties, "one pair")
    if sd <= ROUNDING:
        reason = f"all {n} differences are equal"
        return Paired(n, mean, sd, mean, mean, None, None, wins, ties, reason)
    t = mean / (sd / math.sqrt(n))
    p = float(2 * _scipy_stats().t.sf(abs(t), n - 1))
    return Paired(n, mean, sd, mean - half, mean + half, t, p, wins, ties)


def holm(p_values: Mapping[Key, float | None]) -> dict[Key, float | None]:
    """Returns p-values corrected for their number, which bounds the chance of any false rejection.

    The i-th smallest of m p-values is multiplied by m + 1 - i, and is at least as large as those before it.

    Args:
        p_values: One p-value per planned test; None for a test that cannot be made (yet). It counts in m, so
            that tests do not become easier while results are missing.
    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6 (1979).
    """
    known = sorted((p, number, key) for number, (key, p) in enumerate(p_values.items()) if p is not None)
    corrected: dict[Key, float | None] = dict.fromkeys(p_values)
    highest = 0.0
    for rank, (p, _, key) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        corrected[key] = highest
    return corrected


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns Spearman's rank correlation; None if all values of one sequence are equal."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(_scipy_stats().spearmanr(first, second).statistic)


def require_scipy() -> None:
    """Check that scipy is installed.

    Raises:
        ReportError: It is not.
    """
    _scipy_stats()


def _spread(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean, standard deviation, and half the length of the interval of the mean; None for one value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None, None
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    quantile = float(_scipy_stats().t.ppf((1 + LEVEL) / 2, n - 1))
    return mean, sd, quantile * sd / math.sqrt(n)


def _scipy_stats() -> ModuleType:
    try:
        from scipy import stats
    except ImportError:
        raise ReportError(
            "study report: scipy is not installed, and the tests need it. "
            "Install it with pip install 'ham-dist[study]'"
        ) from None
    module: ModuleType = stats
    return module
