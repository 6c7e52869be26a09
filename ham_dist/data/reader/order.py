"""In which order the rows of a split come, and which of them are whose: arithmetic alone, nothing is read here.

The order of an epoch, N rows in all: the row groups of the split, permuted, are laid one after the other and cut into G lanes, side by side. A global
batch takes its next rows from every lane, and within a lane rows are shuffled window by window, a window being some whole row groups (or what the
lane's ends leave of them). All of it is determined by (seed, epoch), the batch size and the files; the number of ranks is not in it.

How good a shuffle that is: at any moment a batch is drawn from the row groups of G windows, `shuffle_rows` rows, which are a random sample (without
replacement) of the split's row groups. Where rows next to each other in a file are no more alike than others, that is as good as a true shuffle.
Where they are alike, a batch of B rows differs from another as a random sample of shuffle_rows / (rows of a group) row groups would: with a file
sorted by its label, the spread of batches' label rates is about sqrt(B / that number) times a true shuffle's
(perf/results/reader_cpu_2026-11.md).
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

LANES = 64
"""Most lanes of an epoch. Each batch takes a slice of every lane, so more of them cost time; they are also what ranks read apart from each other."""

BLOCK = 16
"""Rows that matrix kernels take together: a rank's part of a batch begins at a multiple of it."""

# First number of a random stream, apart from (seed, epoch), which alone are the stream of `permutation`.
_OF_GROUPS, _OF_LANES = 1, 2


def rows_of_rank(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and last + 1 row of a global batch of `rows` that `rank` of `world_size` gets.

    Parts are contiguous and cut at multiples of 16 rows, so that a row goes through the same vectorised kernel wherever the batch is cut and its
    result does not depend on the number of ranks. Where that left a rank without rows, the largest power of two is taken that leaves none without;
    with fewer rows than ranks some get none.
    """
    block = BLOCK
    while block > 1 and -(-rows // block) < world_size:
        block //= 2
    blocks = -(-rows // block)
    return min(rows, blocks * rank // world_size * block), min(
        rows, blocks * (rank + 1) // world_size * block
    )


def permutation(rows: int, *stream: int) -> Array:
    """An order of `rows` rows that the numbers `stream` (a seed first) determine, the same on every rank and every machine."""
    seed, *rest = stream
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, *rest]))).permutation(
        rows
    )


class Piece(NamedTuple):
    """Rows first to last - 1 of row group number `group`."""

    group: int
    first: int
    last: int


@dataclass(frozen=True)
class Window:
    """Rows of a lane that are in memory together.

    first, last: positions in the lane, last excluded.
    pieces:      where they are read from.
    shuffle:     random stream that permutes them; None leaves them as they are.
    """

    first: int
    last: int
    pieces: tuple[Piece, ...]
    shuffle: tuple[int, ...] | None

    def order(self) -> Array | None:
        """Order of the rows of `pieces`."""
        return None if self.shuffle is None else permutation(self.last - self.first, *self.shuffle)


class Span(NamedTuple):
    """Positions first to last - 1 of lane number `lane`."""

    lane: int
    first: int
    last: int


@dataclass(frozen=True)
class Order:
    """The order of one pass over a split; see the top of this file.

    group_rows:   (row groups,) int64: rows of each, in the order of the files.
    batch_size:   B, rows of a global batch.
    shuffle:      (seed, epoch); None is the order of the files, one lane whose windows are the row groups.
    shuffle_rows: rows in the windows of all lanes together; a row group is read whole, so one that is larger than this is held whole.
    """

    group_rows: Array
    batch_size: int
    shuffle: tuple[int, int] | None
    shuffle_rows: int

    @cached_property
    def rows(self) -> int:
        """N."""
        return int(self.group_rows.sum())

    @cached_property
    def lanes(self) -> int:
        """G."""
        return (
            1
            if self.shuffle is None
            else max(1, min(LANES, self.batch_size, self.shuffle_rows // int(self.group_rows.max())))
        )

    def batch_rows(self, step: int) -> int:
        """Rows of global batch number `step`: B, and what is left for the last one."""
        return min(self.batch_size, self.rows - step * self.batch_size)

    def spans(self, step: int, first: int, last: int) -> Iterator[Span]:
        """Where rows first to last - 1 of global batch number `step` come from, in order."""
        size = self.batch_rows(step)
        edges = self._edges if size == self.batch_size else self._edges_of(size)
        for lane in range(max(0, bisect_right(edges, first) - 1), self.lanes):
            begin, end = edges[lane], edges[lane + 1]
            low, high = max(begin, first), min(end, last)
            if low < high:
                done = step * (self._edges[lane + 1] - self._edges[lane])
                yield Span(lane, done + low - begin, done + high - begin)
            elif begin >= last:
                return

    def windows(self, lane: int) -> Iterator[Window]:
        """The windows of a lane, in order; together they are all its rows. Made one by one, since an epoch can have a million."""
        pieces = self._pieces(self._start(lane), self._start(lane + 1))
        runs = (
            ([piece] for piece in pieces)
            if self.shuffle is None
            else _packed(pieces, self.shuffle_rows // self.lanes)
        )
        position = 0
        for number, run in enumerate(runs):
            end = position + sum(piece.last - piece.first for piece in run)
            yield Window(
                position,
                end,
                tuple(run),
                None if self.shuffle is None else (*self.shuffle, _OF_LANES + lane, number),
            )
            position = end

    def _edges_of(self, size: int) -> list[int]:
        """Rows of a batch of `size` that come from the lanes before each lane, and `size`."""
        return [size * lane // self.lanes for lane in range(self.lanes + 1)]

    @cached_property
    def _edges(self) -> list[int]:
        return self._edges_of(self.batch_size)

    def _start(self, lane: int) -> int:
        """Rows of the lanes before `lane`: each is as long as all batches together, the incomplete last one too, take from it."""
        whole, left = divmod(self.rows, self.batch_size)
        return whole * self._edges[lane] + self._edges_of(left)[lane]

    @cached_property
    def _laid(self) -> tuple[Array, Array]:
        """Numbers of the row groups in the order of this pass, and where each begins (and the last ends)."""
        groups = (
            np.arange(len(self.group_rows))
            if self.shuffle is None
            else permutation(len(self.group_rows), *self.shuffle, _OF_GROUPS)
        )
        return groups, np.concatenate([[0], np.cumsum(self.group_rows[groups])])

    def _pieces(self, first: int, last: int) -> Iterator[Piece]:
        """Positions first to last - 1 as pieces of row groups."""
        groups, starts = self._laid
        place = int(np.searchsorted(starts, first, side="right")) - 1
        while first < last:
            start, end = int(starts[place]), min(last, int(starts[place + 1]))
            if first < end:
                yield Piece(int(groups[place]), first - start, end - start)
            first, place = end, place + 1


def _packed(pieces: Iterator[Piece], rows: int) -> Iterator[list[Piece]]:
    """The pieces in runs of at most `rows` rows, or of one piece where that has more."""
    run: list[Piece] = []
    room = rows
    for piece in pieces:
        size = piece.last - piece.first
        if run and size > room:
            yield run
            run, room = [], rows
        run.append(piece)
        room -= size
    if run:
        yield run
