"""The planted truth: what its vectors promise, and that rows are drawn by it."""

from itertools import combinations

import numpy as np
import pytest

from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.data.synthetic.planted import CHUNK, LATENTS, Planted, auc, evenness


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted(SyntheticSettings())


@pytest.fixture(scope="module")
def sample(planted: Planted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, labels and true logits of 200,000 rows."""
    ids, labels, logits = zip(*planted.chunks("train", 4 * CHUNK), strict=True)
    return np.concatenate(ids, axis=1), np.concatenate(labels), np.concatenate(logits)


def test_latents_are_centred_and_uncorrelated_over_the_values(planted: Planted) -> None:
    for rank, chance, vectors in zip(
        planted.settings.planted_ranks, planted.distributions, planted.vectors, strict=True
    ):
        assert np.abs(vectors[0]).max() == 0, "an unknown value says nothing"
        seen = vectors[1:]
        np.testing.assert_allclose(chance @ seen, 0, atol=1e-12)
        variances = np.linalg.eigvalsh(seen.T @ (chance[:, None] * seen))
        assert np.linalg.matrix_rank(seen) == rank
        if rank:
            # Exactly `rank` directions, of one variance.
            np.testing.assert_allclose(variances[-rank:], variances[-1], rtol=1e-9)
        np.testing.assert_allclose(variances[: len(variances) - rank], 0, atol=1e-9)


def test_every_planted_column_carries_a_share(planted: Planted) -> None:
    """The logit is v_j . sum of the other v_k: each direction of field j must meet some of theirs."""
    frames = []
    for rank, vectors in zip(planted.settings.planted_ranks, planted.vectors, strict=True):
        frames.append(np.linalg.svd(vectors, full_matrices=False)[2][:rank].T)
    assert evenness(frames) > 0.4


def test_true_logits_are_the_sum_over_pairs(
    planted: Planted, sample: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    ids, _, logits = sample
    rows = [vectors[of_field[:100]] for vectors, of_field in zip(planted.vectors, ids, strict=True)]
    pairs = sum((a * b).sum(1) for a, b in combinations(rows, 2))
    np.testing.assert_allclose(logits[:100] - (pairs - 1.0), 0, atol=1e-12)
    assert logits.std() == pytest.approx(planted.settings.signal, rel=0.05)


def test_fields_of_rank_0_do_not_enter(
    planted: Planted, sample: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    ids, labels, logits = sample
    other = ids[:, :1000].copy()
    other[5:] = 1
    np.testing.assert_array_equal(planted.true_logits(other), logits[:1000])
    for field, rank in enumerate(planted.settings.planted_ranks):
        if rank == 0:
            counts = np.bincount(ids[field], minlength=planted.settings.num_embeddings[field])[1:]
            positives = np.bincount(ids[field], weights=labels, minlength=len(counts) + 1)[1:]
            mean = labels.mean()
            seen = counts > 0
            chi_square = (
                (positives[seen] - counts[seen] * mean) ** 2 / (counts[seen] * mean * (1 - mean))
            ).sum()
            freedom = seen.sum() - 1
            assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_labels_follow_the_true_logits(sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, labels, logits = sample
    chance = 1 / (1 + np.exp(-logits))
    for tenth in np.array_split(np.argsort(chance), 10):
        spread = np.sqrt((chance[tenth] * (1 - chance[tenth])).sum())
        assert abs(labels[tenth].sum() - chance[tenth].sum()) < 5 * spread


def test_values_are_zipf_by_id(planted: Planted, sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    ids, _, _ = sample
    for chance, of_field in zip(planted.distributions, ids, strict=True):
        assert of_field.min() >= 1
        counts = np.bincount(of_field, minlength=len(chance) + 1)[1:]
        assert np.abs(counts - 200_000 * chance).max() < 6 * np.sqrt(200_000 * chance.max())
        assert chance[0] / chance[9] == pytest.approx(10**planted.settings.skew)


def test_auc_by_counting_pairs() -> None:
    random = np.random.default_rng(0)
    labels, scores = random.integers(2, size=60), random.integers(10, size=60) / 10
    positive, negative = scores[labels == 1][:, None], scores[labels == 0][None]
    assert auc(labels, scores) == pytest.approx(((positive > negative) + (positive == negative) / 2).mean())
    assert auc(np.ones(5), scores[:5]) is None


def test_missing_values_are_id_0_at_the_rate_and_say_nothing() -> None:
    settings = SyntheticSettings(missing=0.2)
    planted, full = Planted(settings), Planted(SyntheticSettings())
    ids, _, logits = planted.chunk("train", 3, CHUNK)
    there = ids > 0
    assert np.abs(1 - there.mean(axis=1) - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / CHUNK)
    np.testing.assert_array_equal(ids[there], full.chunk("train", 3, CHUNK)[0][there])
    alone = np.where(there.sum(axis=0) <= 1)[0]
    assert len(alone) > 0, "a logit of pairs needs two values"
    np.testing.assert_allclose(logits[alone], -1.0, atol=1e-12)


def test_preset_is_the_benchmarks_204_million_rows() -> None:
    settings = SyntheticSettings(preset="dlrm")
    assert len(settings.num_embeddings) == 26
    assert sum(settings.num_embeddings) == 204_184_588
    assert settings.preset is None
    assert SyntheticSettings(preset="dlrm-39", skew=0.5).skew == 0.5
    assert SyntheticSettings(preset="dlrm-39").num_embeddings[13:] == settings.num_embeddings
    with pytest.raises(ValueError, match="preset = 'dlrm' and num_embeddings are both given"):
        SyntheticSettings(preset="dlrm", num_embeddings=(3, 4))
    Planted(settings).check()
    ids, labels, logits = Planted(settings).chunk("train", 0, 2_000)
    assert (ids >= 1).all()
    assert (ids.max(axis=1) < settings.num_embeddings).all()
    assert ids[0].max() > 1_000_000
    assert logits.std() == pytest.approx(settings.signal, rel=0.2)
    assert 0.2 < labels.mean() < 0.5


def test_values_of_a_large_field_share_latent_rows() -> None:
    planted = Planted(SyntheticSettings(planted_ranks=(2, 2), num_embeddings=(3 * LATENTS, 10)))
    ids = np.array([[7, 7 + LATENTS, 7 + 2 * LATENTS, 8, LATENTS, 2 * LATENTS, 0], [3] * 7])
    logits = planted.true_logits(ids)
    assert logits[0] == logits[1] == logits[2] != logits[3]
    assert logits[4] == logits[5] != logits[6] == -1.0
