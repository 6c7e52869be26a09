from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.data.reader.batch import Batch
from ham_dist.data.synthetic.planted import Planted
from ham_dist.data.synthetic.zipf import Zipf
from ham_dist.errors import DataError
from perf.generated_batches import generated_batches

SETTINGS = SyntheticSettings(
    planted_ranks=(3, 2, 1, 2, 0), num_embeddings=(40, 50_000, 3, 2_000_000, 2), skew=0.9, missing=0.1, seed=4
)
FIELDS = len(SETTINGS.num_embeddings)


def _ids(batch: Batch) -> torch.Tensor:
    """(F, rows)"""
    return batch.sparse_features.values().reshape(FIELDS, -1)


def test_batches_are_as_the_model_takes_them() -> None:
    (batch,) = generated_batches(SETTINGS, 1000, steps=1)
    assert batch.sparse_features.keys() == [f"field_{number}" for number in range(FIELDS)]
    assert batch.sparse_features.stride() == batch.global_rows == len(batch.labels) == 1000
    assert batch.sparse_features.lengths().tolist() == [1] * 5000
    assert batch.sparse_features.values().dtype == torch.int32
    assert batch.labels.dtype == torch.float32
    assert set(batch.labels.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("labels", ["planted", "rule"])
def test_global_batches_do_not_depend_on_the_world_size(world_size: int, labels: str) -> None:
    """Of 5,000 rows, so that blocks end within a rank's part."""
    options: dict[str, Any] = {"steps": 2, "labels": labels}
    whole = list(generated_batches(SETTINGS, 5000, **options))
    parts = [
        list(generated_batches(SETTINGS, 5000, rank=rank, world_size=world_size, **options))
        for rank in range(world_size)
    ]
    for step in range(2):
        assert torch.equal(torch.cat([_ids(part[step]) for part in parts], dim=1), _ids(whole[step]))
        assert torch.equal(torch.cat([part[step].labels for part in parts]), whole[step].labels)
        assert all(part[step].global_rows == 5000 for part in parts)
    assert not torch.equal(_ids(whole[0]), _ids(whole[1]))


def test_batches_can_be_skipped_and_go_on_for_ever() -> None:
    ahead = list(islice(generated_batches(SETTINGS, 64, start=5), 2))
    assert torch.equal(_ids(ahead[1]), _ids(list(generated_batches(SETTINGS, 64, steps=7))[6]))
    other = SETTINGS.model_copy(update={"seed": 5})
    assert not torch.equal(_ids(ahead[0]), _ids(next(iter(generated_batches(other, 64, start=5)))))


def test_values_come_as_often_as_zipf_says_and_are_missing_at_the_rate() -> None:
    rows, cells = 200_000, 40
    ids = _ids(next(iter(generated_batches(SETTINGS, rows)))).numpy()
    for of_field, count in zip(ids, SETTINGS.num_embeddings, strict=True):
        assert 0 <= of_field.min() <= of_field.max() < count
        there = of_field[of_field > 0]
        assert abs(1 - len(there) / rows - 0.1) < 5 * np.sqrt(0.09 / rows)
        expected = len(there) * Zipf.over(count - 1, SETTINGS.skew).chances(cells)
        freedom = len(expected) - 1
        chi_square = (
            (np.bincount((there - 1) % cells, minlength=len(expected)) - expected) ** 2 / expected
        ).sum()
        assert abs(chi_square - freedom) <= 5 * np.sqrt(2 * freedom)


def test_neither_fields_nor_neighbouring_rows_know_of_each_other() -> None:
    settings = SyntheticSettings(planted_ranks=(1, 1, 1), num_embeddings=(1001, 1001, 1001), skew=0.0)
    ids = next(iter(generated_batches(settings, 100_000))).sparse_features.values().reshape(3, -1).numpy()
    series = [*ids[:, :-1], *ids[:, 1:]]
    correlations = np.corrcoef(series)[np.triu_indices(6, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(100_000)


def test_labels_follow_the_planted_truth_or_the_rule() -> None:
    batch = next(iter(generated_batches(SETTINGS, 50_000)))
    chance = 1 / (1 + np.exp(-Planted(SETTINGS).true_logits(_ids(batch).numpy())))
    labels = batch.labels.numpy()
    for tenth in np.array_split(np.argsort(chance), 10):
        spread = np.sqrt((chance[tenth] * (1 - chance[tenth])).sum())
        assert abs(labels[tenth].sum() - chance[tenth].sum()) < 5 * spread
    ruled = next(iter(generated_batches(SETTINGS, 50_000, labels="rule")))
    assert torch.equal(_ids(ruled), _ids(batch))
    assert torch.equal(ruled.labels, (_ids(ruled)[0] % 4 == 0).float())


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 1), (2, 2), (0, 9)])
def test_ranks_that_make_no_sense(rank: int, world_size: int) -> None:
    with pytest.raises(DataError, match=rf"rank {rank} of {world_size} ranks with 8 rows"):
        generated_batches(SETTINGS, 8, rank=rank, world_size=world_size)
    with pytest.raises(DataError, match=r"synthetic\.planted_ranks"):
        generated_batches(SyntheticSettings(planted_ranks=(1,), num_embeddings=(9,)), 8)
