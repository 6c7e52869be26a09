import hashlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ham_dist.config.schema import SyntheticSettings
from ham_dist.data.encode import encode_raw
from ham_dist.data.manifest import Manifest
from ham_dist.data.reader import open_split
from ham_dist.data.synthetic import CHUNK, Planted, auc, evenness, generate
from ham_dist.errors import DataError

SMALL = SyntheticSettings(rows=20_000)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "small"
    generate(SMALL, out)
    return out


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted(SyntheticSettings())


@pytest.fixture(scope="module")
def sample(planted: Planted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, labels and true logits of 200,000 rows."""
    ids, labels, logits = zip(*planted.chunks("train", 4 * CHUNK), strict=True)
    return np.concatenate(ids, axis=1), np.concatenate(labels), np.concatenate(logits)


def test_the_folder_is_one_that_prepare_could_have_written(small: Path) -> None:
    manifest = Manifest.load(small)
    manifest.check(small, deep=True)
    assert {name: entry.rows for name, entry in manifest.splits.items()} == {"train": 16_000, "validation": 2000, "test": 2000}
    assert [(field.name, field.rows) for field in manifest.fields] == [(f"field_{n}", rows) for n, rows in enumerate(SMALL.cardinalities)]
    assert manifest.recipe is None
    assert manifest.settings == SMALL.model_dump(mode="json")
    assert manifest.truth is not None
    assert manifest.truth.planted_ranks == {f"field_{n}": rank for n, rank in enumerate(SMALL.planted_ranks)}
    assert open_split(small, manifest, "test").take(7).sparse_features.keys() == manifest.field_names()


def test_scoring_reads_generated_values(small: Path) -> None:
    path = small / "test/part-00000.parquet"
    ids = encode_raw(None, small / "vocabulary", path)
    assert ids.to_pydict() == pq.read_table(path).drop_columns("label").to_pydict()


def test_vocabulary_counts_the_training_split(small: Path) -> None:
    ids = pq.read_table(small / "train/part-00000.parquet")["field_3"].to_numpy()
    vocabulary = pq.read_table(small / "vocabulary/field_3.parquet")
    assert vocabulary["value"].to_pylist() == [str(id) for id in range(1, 200)]
    assert vocabulary["count"].to_pylist() == np.bincount(ids, minlength=200)[1:].tolist()


def test_same_settings_same_bytes_other_seed_other_rows(small: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()]

    again = generate(SMALL, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(small)
    assert generate(SMALL, tmp_path / "again") == again, "what is there is left alone"
    with pytest.raises(DataError, match="holds synthetic with seed 0, which differs in settings, seed; nothing was written"):
        generate(SMALL.model_copy(update={"seed": 1}), tmp_path / "again")
    other = generate(SMALL.model_copy(update={"seed": 1}), tmp_path / "other")
    assert not {shard.sha256 for split in other.splits.values() for shard in split.shards} & set(digest(small))


def test_any_chunk_can_be_generated_alone(small: Path) -> None:
    ids, labels, _ = Planted(SMALL).chunk("validation", 0, 2000)
    stored = pq.read_table(small / "validation/part-00000.parquet")
    assert stored["label"].to_pylist() == labels.tolist()
    assert stored["field_2"].to_pylist() == ids[2].tolist()


def test_latents_are_centred_and_uncorrelated_over_the_values(planted: Planted) -> None:
    for rank, chance, vectors in zip(planted.settings.planted_ranks, planted.distributions, planted.vectors, strict=True):
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


def test_true_logits_are_the_sum_over_pairs(planted: Planted, sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    ids, _, logits = sample
    rows = [vectors[of_field[:100]] for vectors, of_field in zip(planted.vectors, ids, strict=True)]
    pairs = sum((a * b).sum(1) for a, b in combinations(rows, 2))
    np.testing.assert_allclose(logits[:100] - (pairs - 1.0), 0, atol=1e-12)
    assert logits.std() == pytest.approx(planted.settings.signal, rel=0.05)


def test_fields_of_rank_0_do_not_enter(planted: Planted, sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    ids, labels, logits = sample
    other = ids[:, :1000].copy()
    other[5:] = 1
    np.testing.assert_array_equal(planted.true_logits(other), logits[:1000])
    for field, rank in enumerate(planted.settings.planted_ranks):
        if rank == 0:
            counts = np.bincount(ids[field], minlength=planted.settings.cardinalities[field])[1:]
            positives = np.bincount(ids[field], weights=labels, minlength=len(counts) + 1)[1:]
            mean = labels.mean()
            seen = counts > 0
            chi_square = ((positives[seen] - counts[seen] * mean) ** 2 / (counts[seen] * mean * (1 - mean))).sum()
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


def test_bayes_auc_is_a_ceiling_that_leaves_room(small: Path) -> None:
    truth = Manifest.load(small).truth
    assert truth is not None
    assert 0.8 < truth.bayes_auc < 0.95
    assert 0.3 < truth.bayes_log_loss < 0.6


def test_auc_by_counting_pairs() -> None:
    random = np.random.default_rng(0)
    labels, scores = random.integers(2, size=60), random.integers(10, size=60) / 10
    positive, negative = scores[labels == 1][:, None], scores[labels == 0][None]
    assert auc(labels, scores) == pytest.approx(((positive > negative) + (positive == negative) / 2).mean())
    assert np.isnan(auc(np.ones(5), scores[:5]))


def test_settings_that_plant_nothing_that_shows(tmp_path: Path) -> None:
    def message(**changes: object) -> str:
        with pytest.raises(DataError) as caught:
            generate(SyntheticSettings.model_validate(SMALL.model_dump() | changes), tmp_path / "out")
        return str(caught.value)

    assert "fewer than two fields have a rank above 0" in message(planted_ranks=(3, 0), cardinalities=(10, 10))
    assert message(planted_ranks=(6, 2, 1), cardinalities=(50, 3, 10), rows=10).splitlines() == [
        "synthetic.rows = 10: give at least 1000, so that each split holds both labels",
        "synthetic.planted_ranks: field_0 has 6, and the others only 3 together, which cannot show so many",
        "synthetic.cardinalities: field_1 has 3; 2 centred columns need at least 4",
    ]


def test_an_odd_number_of_rows(tmp_path: Path) -> None:
    manifest = generate(SMALL.model_copy(update={"rows": 1009}), tmp_path / "out")
    assert {name: entry.rows for name, entry in manifest.splits.items()} == {"train": 809, "validation": 100, "test": 100}
    assert pa.concat_tables([pq.read_table(tmp_path / "out" / shard.file) for shard in manifest.splits["train"].shards]).num_rows == 809
