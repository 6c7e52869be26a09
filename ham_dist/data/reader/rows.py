"""Some rows of a split as they lie in memory between the file and the model, and how a batch is made of them; no Python runs a row.

n rows, S fields with one id a row (single-valued), the other fields with any number (multi-valued)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.data.format.manifest import FieldEntry
from ham_dist.data.reader.batch import Batch

Array = np.ndarray[Any, Any]

# TorchRec and FBGEMM take int32 and int64 ids alike, and widen them between the all-to-all and the kernel: int32 halves what is held and sent.
ID_TYPE = np.int32


@dataclass(frozen=True)
class Ragged:
    """A multi-valued field: row i has values[offsets[i] : offsets[i + 1]].

    values:  int32.
    offsets: (n + 1,) int64, from 0 to len(values).
    """

    values: Array
    offsets: Array

    def take(self, places: Array) -> "Ragged":
        """The rows at `places`, in that order."""
        starts = self.offsets[places]
        offsets = offsets_of(self.offsets[places + 1] - starts)
        # The n-th value taken lies at n + (start of its row here - start of its row among those taken).
        at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], np.diff(offsets))
        return Ragged(self.values[at], offsets)

    def slice(self, first: int, last: int) -> "Ragged":
        """Rows first to last - 1, not copied."""
        offsets = self.offsets[first : last + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])


def offsets_of(lengths: Array) -> Array:
    """(n + 1,) int64: where each of n rows of `lengths` values begins, and the end of the last."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True)
class Rows:
    """n rows of a split.

    ids:    (n, S) int32. Row after row, since rows are what a shuffle moves: a row is a few cache lines in one place.
    ragged: the multi-valued fields, in order.
    labels: (n,) float32.
    """

    ids: Array
    ragged: tuple[Ragged, ...]
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: Array) -> "Rows":
        """The rows at `places`, in that order."""
        # np.take, which copies whole rows and lets other threads run meanwhile; indexing is half as fast.
        return Rows(
            np.take(self.ids, places, axis=0),
            tuple(field.take(places) for field in self.ragged),
            self.labels[places],
        )

    def slice(self, first: int, last: int) -> "Rows":
        """Rows first to last - 1, not copied."""
        return Rows(
            self.ids[first:last],
            tuple(field.slice(first, last) for field in self.ragged),
            self.labels[first:last],
        )

    def batch(self, fields: Sequence[FieldEntry], global_rows: int) -> Batch:
        """These rows as this rank's part of a global batch of `global_rows`; the fields are those of the manifest, in order."""
        # Copies all through: what is held for the next epoch must not change with a batch.
        by_field = np.array(self.ids.T, order="C")
        values: list[Array] = []
        lengths: list[Array] = []
        single, ragged = 0, iter(self.ragged)
        for multi_valued, group in groupby(fields, key=lambda field: field.multi_valued):
            count = len(list(group))
            if multi_valued:
                parts = [next(ragged) for _ in range(count)]
                values += [part.values.copy() for part in parts]
                lengths += [np.diff(part.offsets).astype(ID_TYPE) for part in parts]
            else:
                # Neighbours lie one after the other already: field after field is what a KJT wants.
                values.append(by_field[single : single + count].reshape(-1))
                lengths.append(np.ones(count * len(self), dtype=ID_TYPE))
                single += count
        features = KeyedJaggedTensor(
            keys=[field.name for field in fields],
            values=torch.from_numpy(_joined(values)),
            lengths=torch.from_numpy(_joined(lengths)),
            stride=len(self),
        )
        return Batch(features, torch.from_numpy(self.labels.copy()), global_rows)


def concatenated(parts: Sequence[Rows]) -> Rows:
    """The rows of all `parts` (at least one), one after the other; one part is given back as it is."""
    if len(parts) == 1:
        return parts[0]
    ragged = (
        Ragged(
            np.concatenate([field.values for field in of_field]),
            offsets_of(np.concatenate([np.diff(field.offsets) for field in of_field])),
        )
        for of_field in zip(*(part.ragged for part in parts), strict=True)
    )
    return Rows(
        np.concatenate([part.ids for part in parts]),
        tuple(ragged),
        np.concatenate([part.labels for part in parts]),
    )


def _joined(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
