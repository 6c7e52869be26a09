"""Generated batches in memory, to measure training without a disk.

Every id is a function of (seed, row, field) alone.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.data.reader.batch import Batch
from ham_dist.data.reader.order import rows_of_rank
from ham_dist.data.synthetic.planted import Planted
from ham_dist.data.synthetic.zipf import Zipf
from ham_dist.errors import DataError

Array = np.ndarray[Any, Any]

# Rows per block: small enough that the block stays in a core's cache.
_BLOCK = 2048
# Random stream of the batches under `seed`; no split of generated data uses it.
_STREAM = 2000
# One step of splitmix64's counter, and a start far from those of an element's first draws.
_STEP, _MISSING = np.uint64(0x9E37_79B9_7F4A_7C15), np.uint64(0x5851_F42D_4C95_7F2D)


def generated_batches(
    settings: SyntheticSettings,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    steps: int | None = None,
    start: int = 0,
    labels: Literal["planted", "rule"] = "planted",
) -> Iterator[Batch]:
    """This rank's part of each global batch of endless generated data; `settings.rows` is ignored.

    Ids have the distributions of the settings, but are different rows from those that `prepare synthetic`
    writes. Global batches do not depend on the world size: a rank generates only its own rows, split as in
    `Split.batches`.

    Args:
        batch_size: Rows of a global batch.
        steps: Number of batches; None for no end.
        start: Batches to skip, at no cost.
        labels: `planted`: drawn from the planted truth, as in data on disk. `rule`: 1 where the first field's
        id is a multiple of 4,
            which costs nothing and has a Bayes AUC of 1, so it is for throughput only.
    Raises:
        DataError: The settings fit no data, or the rank or world size is invalid.
    """
    if not 0 <= rank < world_size <= batch_size:
        raise DataError(
            f"rank {rank} of {world_size} ranks with {batch_size} rows: expected rank < ranks <= rows"
        )
    planted = Planted(settings)
    planted.check()
    return _generate(
        planted,
        batch_size,
        rank,
        world_size,
        count(start) if steps is None else range(start, start + steps),
        labels,
    )


def _generate(
    planted: Planted,
    batch_size: int,
    rank: int,
    world_size: int,
    steps: Iterator[int] | range,
    labels: Literal["planted", "rule"],
) -> Iterator[Batch]:
    rows = _Rows(planted)
    low, high = rows_of_rank(batch_size, rank, world_size)
    lengths = torch.ones(len(planted.names) * (high - low), dtype=torch.int32)
    for step in steps:
        first = step * batch_size + low
        ids = rows.ids(first, high - low)
        clicks = ids[0] % 4 == 0 if labels == "rule" else rows.clicks(first, ids)
        features = KeyedJaggedTensor(
            planted.names, torch.from_numpy(ids.reshape(-1)), lengths=lengths, stride=high - low
        )
        yield Batch(features, torch.from_numpy(clicks.astype(np.float32)), batch_size)


class _Rows:
    """The endless rows of one data set.

    Element (row, field) has its own splitmix64 stream; numbers are drawn from it until one is accepted.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """

    def __init__(self, planted: Planted) -> None:
        self._planted = planted
        settings = planted.settings
        self._missing = settings.missing
        self._fields = len(settings.num_embeddings)
        self._zipf = Zipf.over(np.array(settings.num_embeddings)[:, None] - 1, settings.skew)
        self._key = np.random.SeedSequence([settings.seed, _STREAM]).generate_state(1, np.uint64)

    def ids(self, first: int, rows: int) -> Array:
        """(F, rows) int32 of the rows from `first` on."""
        ids = np.empty((self._fields, rows), dtype=np.int32)
        for begin in range(0, rows, _BLOCK):
            end = min(begin + _BLOCK, rows)
            ids[:, begin:end] = self._block(
                self._streams(first + begin, end - begin, np.arange(self._fields)[:, None])
            )
        return ids

    def clicks(self, first: int, ids: Array) -> Array:
        """(rows,) bool by the planted truth, for the `ids` of the rows from `first` on."""
        chance = 1 / (1 + np.exp(-self._planted.true_logits(ids)))
        return _uniform(self._streams(first, ids.shape[1], np.array(self._fields))) < chance

    def _streams(self, first: int, rows: int, fields: Array) -> Array:
        """Start of each element's stream, (fields, rows) uint64; index F is the stream of the label."""
        places = np.arange(first, first + rows, dtype=np.uint64) * np.uint64(
            self._fields + 1
        ) + fields.astype(np.uint64)
        return _mixed(places * _STEP + self._key)

    def _block(self, streams: Array) -> Array:
        values, kept = self._zipf.invert(_uniform(streams))
        fields, columns = np.nonzero(~kept)
        draw = _STEP
        while len(fields):
            again, kept = self._zipf.take((fields, 0)).invert(
                _uniform(_mixed(streams[fields, columns] + draw))
            )
            values[fields[kept], columns[kept]] = again[kept]
            fields, columns = fields[~kept], columns[~kept]
            with np.errstate(over="ignore"):
                draw = draw + _STEP
        if self._missing:
            values[_uniform(_mixed(streams + _MISSING)) < self._missing] = 0
        return values


def _mixed(number: Array) -> Array:
    """splitmix64's output for a state, in place."""
    number ^= number >> np.uint64(30)
    number *= np.uint64(0xBF58_476D_1CE4_E5B9)
    number ^= number >> np.uint64(27)
    number *= np.uint64(0x94D0_49BB_1331_11EB)
    number ^= number >> np.uint64(31)
    return number


def _uniform(number: Array) -> Array:
    """[0, 1) from the upper 53 bits."""
    return (number >> np.uint64(11)) * 2.0**-53
