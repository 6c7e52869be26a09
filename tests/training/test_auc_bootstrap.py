"""The paired bootstrap of AUCs against pairs counted one by one, and against DeLong's formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ham_dist.training.auc_bootstrap import auc_difference, aucs, bootstrap_aucs

Floats = NDArray[np.float64]


def counted(scores: Floats, labels: Floats) -> float:
    """AUC as the share of pairs of a positive and a negative row in the right order; a tie counts half."""
    gaps = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def delong(first: Floats, second: Floats, labels: Floats) -> float:
    """Standard error of the difference of two AUCs on the same rows.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), from the placements of the rows.
    """
    placements = []
    for scores in (first, second):
        gaps = scores[labels == 1][:, None] - scores[labels == 0][None, :]
        kernel = (gaps > 0) + 0.5 * (gaps == 0)
        placements.append((kernel.mean(axis=1), kernel.mean(axis=0)))
    (p1, n1), (p2, n2) = placements
    return float(np.sqrt((p1 - p2).var(ddof=1) / len(p1) + (n1 - n2).var(ddof=1) / len(n1)))


def data(rows: int, *, digits: int | None = None) -> tuple[Floats, Floats, Floats]:
    """Logits of two related models, and labels; rounded to `digits` they have ties."""
    random = np.random.default_rng(5)
    truth = random.normal(size=rows)
    labels = (random.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.float64)
    first, second = truth + 0.5 * random.normal(size=rows), truth + 0.9 * random.normal(size=rows)
    return (first, second, labels) if digits is None else (first.round(digits), second.round(digits), labels)


@pytest.mark.parametrize("digits", [None, 0])
def test_aucs_are_those_of_counted_pairs(digits: int | None) -> None:
    first, second, labels = data(300, digits=digits)
    assert aucs([first, second], labels) == pytest.approx([counted(first, labels), counted(second, labels)])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=2, max_size=12))
def test_a_resample_is_the_auc_of_its_repeated_rows(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in rows], dtype=np.float64)
    labels = np.array([label for _, label in rows], dtype=np.float64)
    if labels.min() == labels.max():
        return
    (found,) = bootstrap_aucs([scores], labels, resamples=2, seed=3)[:1, 0]
    random = np.random.default_rng(3)
    while True:
        drawn = random.integers(len(rows), size=len(rows))
        if 0 < labels[drawn].sum() < len(rows):
            break
    assert found == pytest.approx(counted(scores[drawn], labels[drawn]))


@pytest.mark.parametrize("digits", [None, 0])
def test_standard_error_is_delong_s(digits: int | None) -> None:
    """Over 1,000 resamples the relative error is about 2.2 %; 10 % is four and a half of that."""
    first, second, labels = data(2_000, digits=digits)
    found = auc_difference(first, second, labels, seed=1)
    assert found.difference == pytest.approx(counted(first, labels) - counted(second, labels))
    assert found.standard_error == pytest.approx(delong(first, second, labels), rel=0.1)
    assert found.low < found.difference < found.high


def test_a_seed_repeats_the_resamples() -> None:
    first, second, labels = data(200)
    assert auc_difference(first, second, labels, resamples=20, seed=4) == auc_difference(
        first, second, labels, resamples=20, seed=4
    )
    assert auc_difference(first, second, labels, resamples=20, seed=4) != auc_difference(
        first, second, labels, resamples=20, seed=5
    )


def test_equal_models_differ_by_nothing() -> None:
    first, _, labels = data(200)
    found = auc_difference(first, 3 * first + 1, labels, resamples=20)
    assert (found.difference, found.standard_error, found.low, found.high) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [1.0, 1.0], "all labels are equal"),
        ([0.1, np.nan], [0.0, 1.0], "not finite"),
        ([0.1, 0.2], [0.0, 1.0, 1.0], "2 logits for 3 labels"),
    ],
)
def test_undefined_aucs_are_errors(scores: list[float], labels: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aucs([scores], labels)
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_aucs([[0.0, 1.0]], [0.0, 1.0], resamples=1)
