"""Prepared shards -> batches of this rank, whatever the world size the same global batches.

A split that is no larger than `data.shuffle_rows` is held in memory, whole on every rank, and wholly shuffled. A larger one is streamed: each rank
reads the row groups that its parts of the batches come from, and all ranks together hold `data.shuffle_rows` rows (order.py says in which order, and
how good that is).
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ham_dist.config.schema import DataSettings
from ham_dist.data.format.manifest import FieldEntry, Manifest, SplitEntry
from ham_dist.data.reader.batch import Batch
from ham_dist.data.reader.order import Order, Window, permutation, rows_of_rank
from ham_dist.data.reader.prefetch import Prefetched
from ham_dist.data.reader.row_groups import RowGroups
from ham_dist.data.reader.rows import Rows, concatenated
from ham_dist.errors import DataError


class Split:
    """One of train, validation, test. `open_split` makes it.

    identity: a number that is the same for the same shards (by their sha256) and another for others.
    settings: how much of it is in memory, and how many batches are made ahead.
    """

    def __init__(self, name: str, groups: RowGroups, identity: int, settings: DataSettings) -> None:
        self.name = name
        self.identity = identity
        self.settings = settings
        self._groups = groups
        self._held = groups.read(groups.all()) if groups.rows <= settings.shuffle_rows else None

    @property
    def fields(self) -> tuple[FieldEntry, ...]:
        """The F fields, in order."""
        return self._groups.fields

    @property
    def rows(self) -> int:
        """Samples of the split."""
        return self._groups.rows

    def steps(self, batch_size: int, keep_last: bool) -> int:
        """Global batches of one pass; the last, incomplete one counts where `keep_last` is set."""
        return -(-self.rows // batch_size) if keep_last else self.rows // batch_size

    def batch_rows(self, batch_size: int, step: int) -> int:
        """Rows of global batch number `step`: `batch_size`, and what is left for the last one."""
        return min(batch_size, self.rows - step * batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        rank: int,
        world_size: int,
        order: tuple[int, int] | None,
        keep_last: bool,
        start: int = 0,
        pin_memory: bool = False,
    ) -> "Batches":
        """This rank's part of each global batch of one pass.

        batch_size: rows of a global batch, over all ranks. Global batches do not depend on the world size.
        rank, world_size: which rows of each global batch come; see `rows_of_rank`.
        order:      (seed, epoch) shuffles the rows in an order that the two determine; None is file order.
        keep_last:  whether the last batch comes though it is incomplete; with fewer rows than ranks, some ranks get an empty batch then.
        start:      batches to skip, at the cost of reading `data.shuffle_rows` rows at most: the pass goes on as if they had been taken.
        pin_memory: whether batches lie in page-locked memory, from which a GPU copies while the next step is prepared.
        raises:     DataError if a global batch has fewer rows than there are ranks, or the split has no whole batch.
        """
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} of {world_size} ranks: must be from 0 to {world_size - 1}")
        if world_size > batch_size:
            raise DataError(
                f"batch size {batch_size}: fewer rows than the {world_size} ranks that share them\n  Set it to at least {world_size}."
            )
        if self.steps(batch_size, keep_last) == 0:
            raise DataError(
                f"batch size {batch_size}: more rows than the {self.rows} of this split\n  Set it to at most {self.rows}."
            )
        return Batches(self, _Pass(batch_size, (rank, world_size), order, keep_last, pin_memory), start)

    def take(self, rows: int) -> Batch:
        """The first `rows` samples in file order (all, where there are fewer) as one batch of a single rank."""
        size = min(rows, self.rows)
        if self._held is not None:
            return self._held.slice(0, size).batch(self.fields, size)
        return next(self._streamed(self._order(size, None), (0, 1), range(1))).batch(self.fields, size)

    def parts(
        self, batch_size: int, place: tuple[int, int], shuffle: tuple[int, int] | None, steps: range
    ) -> Iterator[Rows]:
        """The rows of rank `place` = (rank, world size) in each of the global batches `steps`; see `batches`."""
        order = self._order(batch_size, shuffle)
        return (
            self._streamed(order, place, steps)
            if self._held is None
            else self._gathered(self._held, order, place, steps)
        )

    def _order(self, batch_size: int, shuffle: tuple[int, int] | None) -> Order:
        return Order(self._groups.sizes, batch_size, shuffle, self.settings.shuffle_rows)

    def _gathered(self, held: Rows, order: Order, place: tuple[int, int], steps: range) -> Iterator[Rows]:
        shuffled = None if order.shuffle is None else permutation(self.rows, *order.shuffle)
        for step in steps:
            low, high = (
                step * order.batch_size + row for row in rows_of_rank(order.batch_rows(step), *place)
            )
            yield held.slice(low, high) if shuffled is None else held.take(shuffled[low:high])

    def _streamed(self, order: Order, place: tuple[int, int], steps: range) -> Iterator[Rows]:
        lanes: dict[int, _Lane] = {}
        for step in steps:
            parts: list[Rows] = []
            for lane, first, last in order.spans(step, *rows_of_rank(order.batch_rows(step), *place)):
                if lane not in lanes:
                    lanes[lane] = _Lane(self._groups, order.windows(lane))
                parts += lanes[lane].rows(first, last)
            yield concatenated(parts) if parts else self._groups.read([])


class _Lane:
    """The rows of one lane, of which one window is in memory; asked for in rising order, it reads each window once."""

    def __init__(self, groups: RowGroups, windows: Iterator[Window]) -> None:
        self._groups = groups
        self._windows = windows
        self._window = next(windows)
        self._held: Rows | None = None

    def rows(self, first: int, last: int) -> Iterator[Rows]:
        """Positions first to last - 1 of the lane, in one piece or, over the end of a window, in several."""
        while first < last:
            while self._window.last <= first:
                self._window = next(self._windows)
                self._held = None  # before the next is read, so that the two are not in memory together
            if self._held is None:
                rows, order = self._groups.read(self._window.pieces), self._window.order()
                self._held = rows if order is None else rows.take(order)
            end = min(last, self._window.last)
            yield self._held.slice(first - self._window.first, end - self._window.first)
            first = end


class Batches(Iterator[Batch]):
    """One pass over a split, from `Split.batches`: an iterator that knows where it is.

    Batches are made ahead, on a thread of their own, which is gone when the pass has ended or was closed, and soon after this object is dropped. What
    goes wrong there is raised by the `next` that asked for the batch.
    """

    def __init__(self, split: Split, settings: "_Pass", start: int) -> None:
        self._split = split
        self._pass = settings
        self._step = start
        self._running: Prefetched[Batch] | None = None

    def __next__(self) -> Batch:
        if self._running is None:
            self._running = Prefetched(self._made(self._pass, self._step), self._split.settings.prefetch)
        batch = next(self._running)
        self._step += 1
        return batch

    def close(self) -> None:
        """End the thread; the next `next` would start another, for the batch that is due."""
        if self._running is not None:
            self._running.close()
        self._running = None

    def state_dict(self) -> dict[str, int]:
        """Where this pass is, and what its order depends on, as plain numbers: what `load_state_dict` goes on from, on any number of ranks."""
        return {
            **self._identity(),
            **({} if self._pass.order is None else {"epoch": self._pass.order[1]}),
            "step": self._step,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state` was taken: its next batch comes next, for the cost of reading `data.shuffle_rows` rows at most.

        raises: DataError that names what differs, if the state is of other data, another batch size, seed or shuffle, or is no state.
        """
        mine = self.state_dict()
        if mine.keys() != state.keys():
            raise DataError(
                f"state of a pass over {self._split.name}: has the keys {', '.join(state)}; wanted are {', '.join(mine)}"
            )
        differ = [
            f"{name} = {state[name]}, and this pass has {value}"
            for name, value in self._identity().items()
            if state[name] != value
        ]
        if differ:
            raise DataError(
                f"state of a pass over {self._split.name}: {'; '.join(differ)}\n  It can only go on as it began."
            )
        steps = self._split.steps(self._pass.batch_size, self._pass.keep_last)
        if not 0 <= state["step"] <= steps:
            raise DataError(
                f"state of a pass over {self._split.name}: step = {state['step']}; must be from 0 to {steps}"
            )
        self.close()
        self._step = state["step"]
        if self._pass.order is not None:
            self._pass = replace(self._pass, order=(self._pass.order[0], state["epoch"]))

    def _identity(self) -> dict[str, int]:
        identity = {"data": self._split.identity, "batch_size": self._pass.batch_size}
        if self._pass.order is not None:
            # All values from the split's own rows on mean the same.
            identity |= {
                "seed": self._pass.order[0],
                "shuffle_rows": min(self._split.settings.shuffle_rows, self._split.rows),
            }
        return identity

    def _made(self, settings: "_Pass", start: int) -> Iterator[Batch]:
        steps = range(start, self._split.steps(settings.batch_size, settings.keep_last))
        parts = self._split.parts(settings.batch_size, settings.place, settings.order, steps)
        for step, rows in zip(steps, parts, strict=True):
            batch = rows.batch(self._split.fields, self._split.batch_rows(settings.batch_size, step))
            yield batch.pin_memory() if settings.pin_memory else batch


@dataclass(frozen=True)
class _Pass:
    """What `Split.batches` was called with."""

    batch_size: int
    place: tuple[int, int]
    order: tuple[int, int] | None
    keep_last: bool
    pin_memory: bool


def open_split(
    folder: str | Path, manifest: Manifest, split: str, settings: DataSettings | None = None
) -> Split:
    """Open `split` of the prepared data in `folder`: check its files, and read it where it is no larger than `settings.shuffle_rows`.

    settings: None takes the defaults; only `shuffle_rows` and `prefetch` count here.
    raises:   DataError for a shard that is missing, damaged or has other columns or rows than the manifest says. For an id outside [0, C_j) and a
              label that is neither 0 nor 1: here where the split is held in memory, else where its batch is asked for.
    """
    if split not in manifest.splits:
        raise DataError(f"{folder}: has no split {split!r}; its splits are {', '.join(manifest.splits)}")
    return Split(
        split,
        RowGroups(folder, manifest, split),
        _identity(manifest.splits[split]),
        settings or DataSettings(),
    )


def _identity(entry: SplitEntry) -> int:
    """63 bits of a hash of the shards' hashes."""
    digest = hashlib.sha256("\n".join(shard.sha256 for shard in entry.shards).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
