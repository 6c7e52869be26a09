"""Shares of unknown values (id 0) by field, in scored records and in the model's training data.

A file in another dialect than training's (another separator in lists, ids written as 1.0, other dates) is
read without an error, but its values are unknown. Comparing the two shares shows this.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ham_dist.data.format.manifest import Manifest
from ham_dist.export.compact import Ids
from ham_dist.export.manifest import FieldEntry, UnknownShares
from ham_dist.io.paths import open_file
from ham_dist.serving.fields_encoder import FieldIds

MARGIN = 0.10
"""A warning needs a share that exceeds training's by this (10 percentage points), and by more than chance."""
_DEVIATIONS = 3.0
"""Standard deviations of a binomial distribution that are still chance."""
_SHARDS, _ROWS = 16, 65_536
"""Number of shards, spread over the split, on which shares are counted, and rows of each."""


def shares_of(folder: str, manifest: Manifest, fields: Sequence[FieldEntry]) -> UnknownShares | None:
    """Returns shares of unknown values in the validation split, or in the training split if that has no rows.

    They are counted on the first 65,536 rows of up to 16 shards. None if both splits have no rows.
    """
    names = [field.name for field in fields]
    for split in ("validation", "train"):
        shards = manifest.splits[split].shards if split in manifest.splits else ()
        counts = UnknownCounts(names)
        rows = 0
        for shard in shards[:: max(1, math.ceil(len(shards) / _SHARDS))]:
            with open_file(f"{folder}/{shard.file}", "rb") as file, pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(_ROWS, columns=names):
                    counts.add({name: _flat(batch.column(name)) for name in names})
                    rows += batch.num_rows
                    break
        if rows:
            shares = {name: counts.share(name) for name in names}
            return UnknownShares(split=split, rows=rows, shares=shares)
    return None


def _flat(column: pa.Array) -> np.ndarray[Any, Any]:
    flat = column.flatten() if pa.types.is_list(column.type) else column
    return np.asarray(pc.fill_null(flat, 0))


@dataclass
class UnknownCounts:
    """Counts of values and of unknown values.

    Attributes:
        fields: Names of the fields.
        values: Number of values by field.
        unknown: Number of unknown values (id 0) by field.
    """

    fields: Sequence[str]
    values: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)

    def add(self, ids: Mapping[str, Ids | FieldIds | np.ndarray[Any, Any]]) -> None:
        """Count the ids of some records, as the model or `RecordEncoder` has them."""
        for name in self.fields:
            of_field = ids[name]
            flat = of_field[0] if isinstance(of_field, tuple) else of_field
            zeros = int((flat == 0).sum())
            self.values[name] = self.values.get(name, 0) + len(flat)
            self.unknown[name] = self.unknown.get(name, 0) + zeros

    def share(self, name: str) -> float:
        """Returns the share of a field's values that are unknown; 0 without values."""
        return self.unknown.get(name, 0) / max(self.values.get(name, 0), 1)

    def warnings(self, expected: UnknownShares | None) -> list[str]:
        """Returns one sentence for each field with far more unknown values than in training.

        The share must exceed training's by MARGIN, and by more than 3 standard deviations of as many random
        draws. If training's share is not known, all values must be unknown.
        """
        return [text for name in self.fields if (text := self._warning(name, expected))]

    def _warning(self, name: str, expected: UnknownShares | None) -> str | None:
        values, unknown = self.values.get(name, 0), self.unknown.get(name, 0)
        if not values:
            return None
        if expected is None or name not in expected.shares:
            return f"field {name}: all {values:,} values are unknown (id 0)" if unknown == values else None
        share = expected.shares[name]
        chance = values * share + _DEVIATIONS * math.sqrt(values * share * (1 - share))
        if unknown / values <= share + MARGIN or unknown <= chance:
            return None
        return (
            f"field {name}: {unknown:,} of {values:,} values ({unknown / values:.1%}) are unknown (id 0), "
            f"compared with {share:.1%} in the {expected.split} split"
        )
