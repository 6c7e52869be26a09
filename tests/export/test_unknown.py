"""Shares of unknown values: as plain Python counts them, and which ones are warned of."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.recipe.load import load_recipe
from ham_dist.export import unknown
from ham_dist.export.manifest import FieldEntry, UnknownShares
from ham_dist.export.unknown import UnknownCounts, shares_of
from tests.support.raw_movielens import write_raw_movielens


def test_shares_are_those_of_the_validation_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the first rows of shards that are spread over the split."""
    recipe = load_recipe("movielens-1m").model_copy(update={"min_count": 8})
    manifest = prepare(
        recipe, write_raw_movielens(tmp_path / "raw", ratings=1500), tmp_path / "data", rows_per_shard=20
    )
    fields = [
        FieldEntry(name=one.name, num_embeddings=one.rows, embedding_dim=1, multi_valued=one.multi_valued)
        for one in manifest.fields
    ]
    monkeypatch.setattr(unknown, "_SHARDS", 3)
    shards = manifest.splits["validation"].shards
    assert len(shards) > 5
    step = -(-len(shards) // 3)
    rows = [
        row for shard in shards[::step] for row in pq.read_table(tmp_path / "data" / shard.file).to_pylist()
    ]
    found = shares_of(str(tmp_path / "data"), manifest, fields)
    assert found is not None
    assert (found.split, found.rows) == ("validation", len(rows))
    for field in fields:
        cells = [row[field.name] for row in rows]
        values = [id for cell in cells for id in (cell if isinstance(cell, list) else [cell])]
        assert found.shares[field.name] == values.count(0) / len(values)
    assert any(0 < share < 1 for share in found.shares.values())
    empty = manifest.splits["validation"].model_copy(update={"shards": (), "rows": 0})
    without = manifest.model_copy(update={"splits": {**manifest.splits, "validation": empty}})
    found = shares_of(str(tmp_path / "data"), without, fields)
    assert found is not None
    assert found.split == "train"


@pytest.mark.parametrize(
    ("values", "zeros", "share", "warns"),
    [
        (1, 1, 0.0, True),
        (1, 1, 0.5, False),  # one record of unknown values is chance where half are
        (10, 10, 0.5, True),
        (1000, 600, 0.5, False),  # not more than 10 percentage points above
        (1000, 601, 0.5, True),
        (1000, 100, 0.0, False),
        (1000, 101, 0.0, True),
        (1000, 1000, 0.95, False),
        (20, 7, 0.2, False),  # 4 expected, 9.4 with three standard deviations
        (20, 10, 0.2, True),
        (0, 0, 0.0, False),
    ],
)
def test_far_higher_is_ten_points_and_more_than_chance(
    values: int, zeros: int, share: float, warns: bool
) -> None:
    counts = UnknownCounts(["x"])
    counts.add({"x": torch.tensor([0] * zeros + [1] * (values - zeros))})
    expected = UnknownShares(split="validation", rows=1, shares={"x": share})
    assert bool(counts.warnings(expected)) == warns


def test_without_shares_only_a_field_of_unknown_values_is_warned_of() -> None:
    counts = UnknownCounts(["all", "some", "none"])
    nothing = torch.zeros(0, dtype=torch.int64)
    counts.add({"all": torch.zeros(3), "some": torch.tensor([0, 0, 1]), "none": nothing})
    assert counts.warnings(None) == ["field all: all 3 values are unknown (id 0)"]
