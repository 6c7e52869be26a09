"""The order of a split's rows in one pass, and the rows of each rank. Arithmetic only; no file is read.

The order of an epoch of N rows: the row groups of the split are permuted, laid end to end and cut into G
lanes of consecutive rows. Each global batch takes its next rows from every lane. Within a lane, rows are
shuffled window by window. A window consists of a few row groups (or parts of them at the ends of the lane).
The order depends only on (seed, epoch), the batch size, `shuffle_rows` and the files, not on the number of
ranks.

Quality of the shuffle: at any moment, a batch is drawn from the row groups of G windows, which hold
`shuffle_rows` rows together and are a random sample (without replacement) of the split's row groups. If
neighbouring rows of a file are no more alike than other rows, this is as good as a full shuffle. If they are
alike, batches of B rows vary like random samples of shuffle_rows / (rows per group) row groups: with a file
sorted by its label, the spread of the label rate between batches is about sqrt(B / that number) times that of
a full shuffle (perf/results/reader_cpu_2026-11.md).
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

LANES = 64
"""Maximum number of lanes of an epoch.

Each batch takes a slice of every lane, so more lanes cost time. But different ranks can read different lanes.
"""

BLOCK = 16
"""Rows that matrix kernels process together: each rank's part of a batch starts at a multiple of it."""

# Third number of a random stream, after (seed, epoch); a split held in memory uses (seed, epoch) alone.
_GROUP_STREAM, _LANE_STREAM = 1, 2


def rows_of_rank(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First row, and last row + 1, of `rank`'s part of a global batch of `rows` rows.

    Parts are contiguous and cut at multiples of 16 rows, so that every row goes through the same vectorized
    kernel wherever the batch is cut, and its result does not depend on the number of ranks. If this would
    leave a rank without rows, a smaller power of two is used: the largest that gives every rank some rows.
    With fewer rows than ranks, some ranks get none.
    """
    block = BLOCK
    while block > 1 and -(-rows // block) < world_size:
        block //= 2
    blocks = -(-rows // block)
    return min(rows, blocks * rank // world_size * block), min(
        rows, blocks * (rank + 1) // world_size * block
    )


def permutation(rows: int, *stream: int) -> Array:
    """Random permutation of `rows` rows, identical on every rank and every machine.

    Args:
        rows: Number of rows n.
        *stream: Numbers that determine the permutation; the seed comes first.
    Returns:
        (n,) int64.
    """
    seed, *rest = stream
    entropy = np.random.SeedSequence([seed % 2**64, *rest])
    return np.random.Generator(np.random.Philox(entropy)).permutation(rows)


class RowRange(NamedTuple):
    """Rows first to last - 1 of row group number `group`."""

    group: int
    first: int
    last: int


@dataclass(frozen=True)
class Window:
    """Rows of a lane that are in memory together.

    Attributes:
        first: First position in the lane.
        last: Last position in the lane + 1.
        ranges: Rows to read, in file order within each range.
        shuffle: Random stream that permutes them; None keeps their order.
    """

    first: int
    last: int
    ranges: tuple[RowRange, ...]
    shuffle: tuple[int, ...] | None

    def order(self) -> Array | None:
        """Permutation of the rows of `ranges`, (last - first,) int64; None keeps their order."""
        return None if self.shuffle is None else permutation(self.last - self.first, *self.shuffle)


class Span(NamedTuple):
    """Positions first to last - 1 of lane number `lane`."""

    lane: int
    first: int
    last: int


@dataclass(frozen=True)
class Order:
    """The order of one pass over a split; see the top of this file.

    Attributes:
        group_rows: (row groups,) int64: rows of each row group, in the order of the files.
        batch_size: B, rows of a global batch.
        shuffle: (seed, epoch); None for file order: a single lane with one row group per window.
        shuffle_rows: Rows in the windows of all lanes together. Row groups are read whole, so a row group
            that is larger than this is still held whole.
    """

    group_rows: Array
    batch_size: int
    shuffle: tuple[int, int] | None
    shuffle_rows: int

    @cached_property
    def rows(self) -> int:
        """N, the number of rows of the split."""
        return int(self.group_rows.sum())

    @cached_property
    def lanes(self) -> int:
        """G, the number of lanes."""
        if self.shuffle is None:
            return 1
        return max(1, min(LANES, self.batch_size, self.shuffle_rows // int(self.group_rows.max())))

    def batch_rows(self, step: int) -> int:
        """Rows of global batch number `step`: B, or fewer for the last batch."""
        return min(self.batch_size, self.rows - step * self.batch_size)

    def spans(self, step: int, first: int, last: int) -> Iterator[Span]:
        """Lane positions of rows first to last - 1 of global batch number `step`, in order."""
        size = self.batch_rows(step)
        edges = self._lane_starts if size == self.batch_size else self._lane_starts_of(size)
        for lane in range(max(0, bisect_right(edges, first) - 1), self.lanes):
            begin, end = edges[lane], edges[lane + 1]
            low, high = max(begin, first), min(end, last)
            if low < high:
                done = step * (self._lane_starts[lane + 1] - self._lane_starts[lane])
                yield Span(lane, done + low - begin, done + high - begin)
            elif begin >= last:
                return

    def windows(self, lane: int) -> Iterator[Window]:
        """The windows of a lane, in order; together they hold all rows of the lane.

        A generator, because an epoch can have a million windows.
        """
        ranges = self._row_ranges(self._start(lane), self._start(lane + 1))
        runs = (
            ([one] for one in ranges)
            if self.shuffle is None
            else _packed(ranges, self.shuffle_rows // self.lanes)
        )
        position = 0
        for number, run in enumerate(runs):
            end = position + sum(one.last - one.first for one in run)
            shuffle = None if self.shuffle is None else (*self.shuffle, _LANE_STREAM + lane, number)
            yield Window(position, end, tuple(run), shuffle)
            position = end

    def _lane_starts_of(self, size: int) -> list[int]:
        """For each lane, the rows of a batch of `size` rows that come from earlier lanes; then `size`."""
        return [size * lane // self.lanes for lane in range(self.lanes + 1)]

    @cached_property
    def _lane_starts(self) -> list[int]:
        return self._lane_starts_of(self.batch_size)

    def _start(self, lane: int) -> int:
        """Rows of the lanes before `lane`.

        A lane has as many rows as all batches, including an incomplete last one, take from it.
        """
        whole, left = divmod(self.rows, self.batch_size)
        return whole * self._lane_starts[lane] + self._lane_starts_of(left)[lane]

    @cached_property
    def _groups_in_order(self) -> tuple[Array, Array]:
        """Row group numbers in the order of this pass, and the start of each (and the end of the last)."""
        groups = (
            np.arange(len(self.group_rows))
            if self.shuffle is None
            else permutation(len(self.group_rows), *self.shuffle, _GROUP_STREAM)
        )
        return groups, np.concatenate([[0], np.cumsum(self.group_rows[groups])])

    def _row_ranges(self, first: int, last: int) -> Iterator[RowRange]:
        """Ranges of row groups that are positions first to last - 1 of the pass."""
        groups, starts = self._groups_in_order
        place = int(np.searchsorted(starts, first, side="right")) - 1
        while first < last:
            start, end = int(starts[place]), min(last, int(starts[place + 1]))
            if first < end:
                yield RowRange(int(groups[place]), first - start, end - start)
            first, place = end, place + 1


def _packed(ranges: Iterator[RowRange], rows: int) -> Iterator[list[RowRange]]:
    """The ranges in runs of at most `rows` rows; a longer range is a run of its own."""
    run: list[RowRange] = []
    room = rows
    for one in ranges:
        size = one.last - one.first
        if run and size > room:
            yield run
            run, room = [], rows
        run.append(one)
        room -= size
    if run:
        yield run
