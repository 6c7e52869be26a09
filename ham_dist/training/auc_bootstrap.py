"""Standard errors of AUCs, and of their differences on the same rows, by the bootstrap.

Shape letters: M models, N rows, R resamples. Needs numpy only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RESAMPLES = 1000
"""Resamples by default; the relative error of a standard error is then about 1 / sqrt(2 R) = 2 %."""


@dataclass(frozen=True)
class AucDifference:
    """The difference of the AUCs of two models on the same rows.

    Attributes:
        difference: AUC of the first model less that of the second.
        standard_error: Standard deviation of the difference over the resamples.
        low: 2.5 % quantile of the difference over the resamples.
        high: 97.5 % quantile.
    """

    difference: float
    standard_error: float
    low: float
    high: float


def auc_difference(
    first: ArrayLike, second: ArrayLike, labels: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> AucDifference:
    """Returns the difference of two models' AUCs on the same rows, by a paired bootstrap.

    A resample takes the same rows for both models, so what the models have in common cancels.

    Args:
        first: Logits of the first model, (N,).
        second: Logits of the second model, (N,).
        labels: Labels 0 and 1, (N,).
        resamples: Number of resamples.
        seed: Seed of the resamples.
    Raises:
        ValueError: All labels are equal, or a logit is not finite.
    """
    scores = np.stack([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)])
    one, other = aucs(scores, labels)
    resampled = bootstrap_aucs(scores, labels, resamples=resamples, seed=seed)
    differences = resampled[:, 0] - resampled[:, 1]
    low, high = np.quantile(differences, [0.025, 0.975])
    return AucDifference(float(one - other), float(differences.std(ddof=1)), float(low), float(high))


def aucs(scores: ArrayLike, labels: ArrayLike) -> Floats:
    """Returns the exact AUC of each model, (M,); ties between scores count half.

    Args:
        scores: Logits, (M, N).
        labels: Labels 0 and 1, (N,).
    Raises:
        ValueError: All labels are equal, or a logit is not finite.
    """
    ranked = [_Ranked(row, labels) for row in np.asarray(scores, dtype=np.float64)]
    weights = np.ones(np.asarray(labels).shape[0])
    return np.array([model.auc(weights) for model in ranked])


def bootstrap_aucs(
    scores: ArrayLike, labels: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Returns the AUC of each model on R resamples of the rows, (R, M); all models get the same resamples.

    The models are sorted once. A resample gives each row a count, from which the AUC follows in one pass.

    Args:
        scores: Logits, (M, N).
        labels: Labels 0 and 1, (N,).
        resamples: R, at least 2.
        seed: Seed of the resamples.
    Raises:
        ValueError: All labels are equal, or a logit is not finite.
    """
    if resamples < 2:
        raise ValueError(f"resamples = {resamples}: a standard error needs at least 2")
    marks = np.asarray(labels, dtype=np.float64)
    ranked = [_Ranked(row, marks) for row in np.asarray(scores, dtype=np.float64)]
    random, rows = np.random.default_rng(seed), len(marks)
    positives = marks > 0.5
    found = np.empty((resamples, len(ranked)))
    for number in range(resamples):
        while True:
            counts = np.bincount(random.integers(rows, size=rows), minlength=rows).astype(np.float64)
            if 0 < counts[positives].sum() < rows:  # drawn again if only one label is left, in tiny data
                break
        found[number] = [model.auc(counts) for model in ranked]
    return found


class _Ranked:
    """The rows of one model in the order of its scores."""

    def __init__(self, scores: Floats, labels: ArrayLike) -> None:
        labels = np.asarray(labels, dtype=np.float64)
        if scores.shape != labels.shape:
            raise ValueError(f"{scores.shape[0]} logits for {labels.shape[0]} labels; expected one per row")
        if not np.isfinite(scores).all():
            raise ValueError("a logit is not finite, so the AUC is undefined")
        if not 0 < labels.sum() < len(labels):
            raise ValueError("all labels are equal, so the AUC is undefined")
        self._order = np.argsort(scores, kind="stable")
        ordered = scores[self._order]
        self._positive = labels[self._order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        # Without ties every group has one row, and the sums over groups are left out.
        self._starts = None if len(starts) == len(ordered) else starts

    def auc(self, counts: Floats) -> float:
        """AUC of rows that occur `counts` times, (N,) in the original order."""
        counts = counts[self._order]
        positives = counts * self._positive
        negatives = counts - positives
        if self._starts is not None:
            positives = np.add.reduceat(positives, self._starts)
            negatives = np.add.reduceat(negatives, self._starts)
        below = np.cumsum(negatives) - 0.5 * negatives
        return float(positives @ below / (positives.sum() * negatives.sum()))
