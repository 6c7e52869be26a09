"""Reads prepared shards as batches of this rank. Global batches do not depend on the world size.

A split of at most `data.shuffle_rows` rows is held in memory, whole on every rank, and fully shuffled. A
larger split is streamed: each rank reads the row groups that its parts of the batches come from, and all
ranks together hold `data.shuffle_rows` rows (order.py describes the order and the quality of this shuffle).
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ham_dist.config.schema import DataSettings
from ham_dist.data.format.manifest import DataField, Manifest, SplitEntry
from ham_dist.data.reader.batch import Batch
from ham_dist.data.reader.halves import Half
from ham_dist.data.reader.order import Order, Window, permutation, rows_of_rank
from ham_dist.data.reader.prefetch import Prefetched
from ham_dist.data.reader.row_groups import RowGroups
from ham_dist.data.reader.rows import RowBlock, concatenated
from ham_dist.errors import DataError


class Split:
    """One split of prepared data: train, validation or test. Opened by `open_split`.

    Attributes:
        name: Name of the split.
        identity: A number derived from the sha256 of the shards; different shards have different numbers.
        settings: Number of rows held in memory, and number of batches made in advance.
    """

    def __init__(self, name: str, groups: RowGroups, identity: int, settings: DataSettings) -> None:
        self.name = name
        self.identity = identity
        self.settings = settings
        self._groups = groups
        self._held = groups.read(groups.all()) if groups.rows <= settings.shuffle_rows else None

    @property
    def fields(self) -> tuple[DataField, ...]:
        """The F fields of the manifest, in order."""
        return self._groups.fields

    @property
    def rows(self) -> int:
        """Number of samples of the split."""
        return self._groups.rows

    def only_label(self) -> int | None:
        """The label of all samples if it is the same one, else None. It reads until it finds both labels."""
        return self._groups.only_label()

    def steps(self, batch_size: int, keep_last: bool) -> int:
        """Number of global batches of one pass; an incomplete last batch counts only with `keep_last`."""
        return -(-self.rows // batch_size) if keep_last else self.rows // batch_size

    def batch_rows(self, batch_size: int, step: int) -> int:
        """Rows of global batch number `step`: `batch_size`, or fewer for the last batch."""
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

        Args:
            batch_size: Rows of a global batch over all ranks. Global batches do not depend on the world size.
            rank: This rank; see `rows_of_rank` for the rows that it gets.
            world_size: Number of ranks.
            order: (seed, epoch), which determine the shuffle; None for file order.
            keep_last: Keep an incomplete last batch. If it has fewer rows than there are ranks, some ranks
                get an empty batch.
            start: Number of batches to skip. This reads at most `data.shuffle_rows` rows; the remaining
                batches are the same as without skipping.
            pin_memory: Put batches in page-locked memory, from which the GPU copies asynchronously.
        Raises:
            DataError: A global batch has fewer rows than there are ranks, or the split has no whole batch.
        """
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} of {world_size} ranks: must be from 0 to {world_size - 1}")
        if world_size > batch_size:
            raise DataError(
                f"batch size {batch_size}: fewer rows than the {world_size} ranks that share them\n"
                f"  Set it to at least {world_size}."
            )
        if self.steps(batch_size, keep_last) == 0:
            raise DataError(
                f"batch size {batch_size}: more rows than the {self.rows} of this split\n"
                f"  Set it to at most {self.rows}."
            )
        return Batches(self, _Pass(batch_size, (rank, world_size), order, keep_last, pin_memory), start)

    def take(self, rows: int) -> Batch:
        """The first `rows` samples in file order, or all if there are fewer, as one batch of one rank."""
        size = min(rows, self.rows)
        if self._held is not None:
            return self._held.slice(0, size).batch(self.fields, size)
        return next(self._streamed(self._order(size, None), (0, 1), range(1))).batch(self.fields, size)

    def parts(
        self, batch_size: int, place: tuple[int, int], shuffle: tuple[int, int] | None, steps: range
    ) -> Iterator[RowBlock]:
        """This rank's rows of each global batch.

        Args:
            batch_size: Rows of a global batch over all ranks.
            place: (rank, world size).
            shuffle: (seed, epoch); None for file order.
            steps: Numbers of the global batches.
        """
        order = self._order(batch_size, shuffle)
        return (
            self._streamed(order, place, steps)
            if self._held is None
            else self._from_memory(self._held, order, place, steps)
        )

    def _order(self, batch_size: int, shuffle: tuple[int, int] | None) -> Order:
        return Order(self._groups.sizes, batch_size, shuffle, self.settings.shuffle_rows)

    def _from_memory(
        self, held: RowBlock, order: Order, place: tuple[int, int], steps: range
    ) -> Iterator[RowBlock]:
        shuffled = None if order.shuffle is None else permutation(self.rows, *order.shuffle)
        for step in steps:
            low, high = (
                step * order.batch_size + row for row in rows_of_rank(order.batch_rows(step), *place)
            )
            yield held.slice(low, high) if shuffled is None else held.take(shuffled[low:high])

    def _streamed(self, order: Order, place: tuple[int, int], steps: range) -> Iterator[RowBlock]:
        lanes: dict[int, _Lane] = {}
        for step in steps:
            parts: list[RowBlock] = []
            for lane, first, last in order.spans(step, *rows_of_rank(order.batch_rows(step), *place)):
                if lane not in lanes:
                    lanes[lane] = _Lane(self._groups, order.windows(lane))
                parts += lanes[lane].rows(first, last)
            yield concatenated(parts) if parts else self._groups.read([])


class _Lane:
    """The rows of one lane, with one window in memory. Read in ascending order, each window is read once."""

    def __init__(self, groups: RowGroups, windows: Iterator[Window]) -> None:
        self._groups = groups
        self._windows = windows
        self._window = next(windows)
        self._held: RowBlock | None = None

    def rows(self, first: int, last: int) -> Iterator[RowBlock]:
        """Positions first to last - 1 of the lane, as one block per window that they are in."""
        while first < last:
            while self._window.last <= first:
                self._window = next(self._windows)
                self._held = None  # first, so that two windows are never in memory together
            if self._held is None:
                rows, order = self._groups.read(self._window.ranges), self._window.order()
                self._held = rows if order is None else rows.take(order)
            end = min(last, self._window.last)
            yield self._held.slice(first - self._window.first, end - self._window.first)
            first = end


class Batches(Iterator[Batch]):
    """One pass over a split, from `Split.batches`: an iterator whose position can be saved and restored.

    A background thread makes batches in advance. It stops when the pass ends or is closed, or soon after this
    object is garbage collected. An error of the thread is raised by the `next` for the failed batch.
    """

    def __init__(self, split: Split, settings: "_Pass", start: int) -> None:
        self._split = split
        self._pass = settings
        self._step = start
        self._running: Prefetched[Batch] | None = None

    def __next__(self) -> Batch:
        if self._running is None:
            self._running = Prefetched(
                _batches(self._split, self._pass, self._step), self._split.settings.prefetch
            )
        batch = next(self._running)
        self._step += 1
        return batch

    def close(self) -> None:
        """Stop the thread. A later `next` starts another thread, at the same position."""
        if self._running is not None:
            self._running.close()
        self._running = None

    def state_dict(self) -> dict[str, int]:
        """Position of this pass, and all that its order depends on, as plain integers.

        `load_state_dict` resumes from it on any number of ranks.
        """
        return {
            **self._identity(),
            **({} if self._pass.order is None else {"epoch": self._pass.order[1]}),
            "step": self._step,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume from `state`: the next batch is the one that followed it.

        This reads at most `data.shuffle_rows` rows.

        Raises:
            DataError: The state has other keys, or belongs to other data or another batch size, seed or
                shuffle. The message names each difference.
        """
        mine = self.state_dict()
        if mine.keys() != state.keys():
            raise DataError(
                f"state of a pass over {self._split.name}: has the keys {', '.join(state)};"
                f" expected {', '.join(mine)}"
            )
        differ = [
            f"{name} = {state[name]}, but this pass has {value}"
            for name, value in self._identity().items()
            if state[name] != value
        ]
        if differ:
            raise DataError(
                f"state of a pass over {self._split.name}: {'; '.join(differ)}\n"
                "  Resume with the same data and settings, or start a new run."
            )
        steps = self._split.steps(self._pass.batch_size, self._pass.keep_last)
        if not 0 <= state["step"] <= steps:
            raise DataError(
                f"state of a pass over {self._split.name}: step = {state['step']}; expected 0 to {steps}"
            )
        self.close()
        self._step = state["step"]
        if self._pass.order is not None:
            self._pass = replace(self._pass, order=(self._pass.order[0], state["epoch"]))

    def _identity(self) -> dict[str, int]:
        identity = {"data": self._split.identity, "batch_size": self._pass.batch_size}
        if self._pass.order is not None:
            # Every value of at least the split's rows gives the same order.
            identity |= {
                "seed": self._pass.order[0],
                "shuffle_rows": min(self._split.settings.shuffle_rows, self._split.rows),
            }
        return identity


@dataclass(frozen=True)
class _Pass:
    """Arguments of `Split.batches`."""

    batch_size: int
    place: tuple[int, int]
    order: tuple[int, int] | None
    keep_last: bool
    pin_memory: bool


def _batches(split: Split, settings: _Pass, start: int) -> Iterator[Batch]:
    """Yields the batches of a pass, on its thread.

    A function, not a method of `Batches`: otherwise the thread would keep that object alive.
    """
    steps = range(start, split.steps(settings.batch_size, settings.keep_last))
    parts = split.parts(settings.batch_size, settings.place, settings.order, steps)
    for step, rows in zip(steps, parts, strict=True):
        batch = rows.batch(split.fields, split.batch_rows(settings.batch_size, step))
        yield batch.pin_memory() if settings.pin_memory else batch


def open_split(
    folder: str | Path,
    manifest: Manifest,
    split: str,
    settings: DataSettings | None = None,
    half: Half | None = None,
) -> Split:
    """Opens `split` of the prepared data in `folder`, or one half of it (halves.py), and checks its files.

    A split of at most `settings.shuffle_rows` rows is read into memory.

    Args:
        folder: Prepared data.
        manifest: Its manifest.
        split: Name of the split.
        settings: None for the defaults; only `shuffle_rows` and `prefetch` are used.
        half: The half to open; None for all rows.
    Raises:
        DataError: A shard is missing or damaged, or its columns or rows differ from the manifest. An id
            outside [0, C_j) or a label other than 0 and 1 is raised here if the split is held in memory,
            otherwise by the `next` for its batch.
    """
    if split not in manifest.splits:
        raise DataError(f"{folder}: has no split {split!r}; its splits are {', '.join(manifest.splits)}")
    return Split(
        split,
        RowGroups(folder, manifest, split, half),
        _identity(manifest.splits[split], half),
        settings or DataSettings(),
    )


def _identity(entry: SplitEntry, half: Half | None) -> int:
    """The first 63 bits of a hash over the shards' hashes and the half."""
    parts = [*(shard.sha256 for shard in entry.shards), *([half] if half else [])]
    digest = hashlib.sha256("\n".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
