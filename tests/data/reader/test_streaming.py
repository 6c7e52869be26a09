"""Splits larger than data.shuffle_rows: what the ranks read, in which order, and how much is in memory."""

import tracemalloc
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ham_dist.config.schema import DataSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.row_groups import RowGroups
from ham_dist.data.reader.split import Batches, Split, open_split
from ham_dist.errors import DataError
from tests.support.numbered import numbers_of, write_numbered

SHARDS = (700, 330, 1, 969)
ROWS = sum(SHARDS)
GROUP = 64
SHUFFLE_ROWS = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("numbered") / "data"
    write_numbered(out, SHARDS, GROUP)
    return out


@pytest.fixture(scope="module")
def split(folder: Path) -> Split:
    return opened(folder)


def opened(folder: Path, **settings: int) -> Split:
    return open_split(
        folder, Manifest.load(folder), "train", DataSettings(**{"shuffle_rows": SHUFFLE_ROWS, **settings})
    )


def drawn(
    split: Split,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    order: tuple[int, int] | None = (0, 0),
    start: int = 0,
    keep_last: bool = True,
) -> list[list[int]]:
    batches = split.batches(
        batch_size, rank=rank, world_size=world_size, order=order, keep_last=keep_last, start=start
    )
    return [numbers_of(batch) for batch in batches]


def joined(parts: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the row groups that are read from now on."""
    groups: list[int] = []
    read = RowGroups.read

    def noted(self: RowGroups, ranges: list) -> object:  # type: ignore[type-arg]
        groups.extend(part.group for part in ranges)
        return read(self, ranges)

    monkeypatch.setattr(RowGroups, "read", noted)
    return groups


def test_file_order(split: Split) -> None:
    assert [row for batch in drawn(split, 150, order=None) for row in batch] == list(range(ROWS))
    assert numbers_of(split.take(100)) == list(range(100))
    assert numbers_of(split.take(10**6)) == list(range(ROWS))


def test_an_epoch_is_every_row_once_in_an_order_of_its_own(split: Split) -> None:
    epochs = [[row for batch in drawn(split, 100, order=(0, epoch)) for row in batch] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(ROWS))
    assert epochs[0] != epochs[1] != list(range(ROWS))


def test_batches_come_from_many_places_of_the_file(split: Split) -> None:
    for batch in drawn(split, 100)[:-1]:
        assert len({row // GROUP for row in batch}) >= SHUFFLE_ROWS // GROUP


@pytest.mark.parametrize("order", [None, (1, 2)])
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_together_hold_the_global_batch(
    split: Split, order: tuple[int, int] | None, world_size: int
) -> None:
    ranks = [drawn(split, 130, rank, world_size, order) for rank in range(world_size)]
    assert [joined(parts) for parts in zip(*ranks, strict=True)] == drawn(split, 130, order=order)


@pytest.mark.parametrize("order", [None, (1, 2)])
@given(data=st.data(), batch_size=st.integers(20, 400))
@settings(max_examples=12, deadline=None)
def test_start_goes_on_where_a_pass_was_left(
    split: Split, order: tuple[int, int] | None, data: st.DataObject, batch_size: int
) -> None:
    start = data.draw(st.integers(0, split.steps(batch_size, keep_last=True)))
    assert drawn(split, batch_size, order=order, start=start) == drawn(split, batch_size, order=order)[start:]


def test_a_rank_reads_its_own_row_groups(split: Split, reads: list[int]) -> None:
    """Of four ranks, each a quarter of the split and what it shares with its neighbours: the lanes' ends."""
    of_rank = []
    for rank in range(4):
        reads.clear()
        drawn(split, 128, rank, 4, keep_last=False)
        of_rank.append(set(reads))
        assert len(reads) == len(of_rank[-1]), "no row group is read twice"
    groups = set.union(*of_rank)
    assert len(groups) == sum(-(-rows // GROUP) for rows in SHARDS)
    assert sum(map(len, of_rank)) <= len(groups) + 4


def test_going_on_reads_no_more_than_what_is_held(split: Split, reads: list[int]) -> None:
    batches = split.batches(32, rank=0, world_size=1, order=(0, 0), keep_last=False, start=40)
    next(batches)
    batches.close()
    # Windows of one row group or two cut ones; a few more may have been begun ahead.
    assert len(reads) <= 3 * SHUFFLE_ROWS // GROUP


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    def peak(shards: int) -> int:
        write_numbered(tmp_path / str(shards), [10_000] * shards, 1_000)
        split = opened(tmp_path / str(shards), shuffle_rows=5_000, prefetch=1)
        for epoch in range(2):  # the first one makes what is made once
            tracemalloc.start()
            for _ in split.batches(500, rank=0, world_size=1, order=(0, epoch), keep_last=False):
                pass
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return most

    assert peak(10) < 1.3 * peak(2)


class TestState:
    """A pass is left in the middle and gone on with, by another object, on other ranks."""

    @staticmethod
    def batches(
        split: Split,
        rank: int = 0,
        world_size: int = 1,
        size: int = 96,
        order: tuple[int, int] | None = (3, 1),
    ) -> Batches:
        return split.batches(size, rank=rank, world_size=world_size, order=order, keep_last=True)

    @pytest.mark.parametrize("shuffle_rows", [SHUFFLE_ROWS, ROWS])
    @pytest.mark.parametrize("order", [None, (3, 1)])
    def test_goes_on_at_the_next_batch_on_any_ranks(
        self, folder: Path, shuffle_rows: int, order: tuple[int, int] | None
    ) -> None:
        split = opened(folder, shuffle_rows=shuffle_rows)
        before = self.batches(split, order=order)
        for _ in range(7):
            next(before)
        state = before.state_dict()
        assert all(type(value) is int for value in state.values())
        wanted = [numbers_of(batch) for batch in before]
        other_epoch = None if order is None else (order[0], 0)
        ranks = [
            self.batches(opened(folder, shuffle_rows=shuffle_rows), rank, 3, order=other_epoch)
            for rank in range(3)
        ]
        for batches in ranks:
            next(batches)
            batches.load_state_dict(state)
            assert batches.state_dict() == state
        assert [joined(map(numbers_of, parts)) for parts in zip(*ranks, strict=True)] == wanted

    def test_what_does_not_fit_is_named(self, split: Split, folder: Path, tmp_path: Path) -> None:
        state = self.batches(split).state_dict()

        def refusal(batches: Batches, state: dict[str, int] = state) -> str:
            with pytest.raises(DataError) as caught:
                batches.load_state_dict(state)
            return str(caught.value)

        assert "batch_size = 96, but this pass has 50\n" in refusal(self.batches(split, size=50))
        assert "seed = 3, but this pass has 4\n" in refusal(self.batches(split, order=(4, 1)))
        assert "shuffle_rows = 256, but this pass has 100\n" in refusal(
            self.batches(opened(folder, shuffle_rows=100))
        )
        write_numbered(tmp_path / "other", [ROWS], GROUP)
        assert "train: data = " in refusal(self.batches(opened(tmp_path / "other")))
        assert "step = 22; expected 0 to 21" in refusal(self.batches(split), {**state, "step": 22})
        assert "has the keys data, batch_size, step; expected" in refusal(
            self.batches(split), self.batches(split, order=None).state_dict()
        )


def test_memory_that_a_gpu_copies_from(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[object] = []

    def pin(batch: object) -> object:
        pinned.append(batch)
        return batch

    monkeypatch.setattr("ham_dist.data.reader.batch.Batch.pin_memory", pin)
    batches = split.batches(500, rank=0, world_size=1, order=None, keep_last=True, pin_memory=True)
    assert [id(batch) for batch in batches] == [id(batch) for batch in pinned]


class TestDamageInThePass:
    """What footers do not show comes up with the batch that needs it."""

    @pytest.fixture
    def after(self, tmp_path: Path) -> Callable[[Callable[[bytearray], None]], str]:
        """Changes the bytes of the second shard, and gives what reading it says."""

        def attempt(change: Callable[[bytearray], None]) -> str:
            manifest = write_numbered(tmp_path / "data", [500, 500], 100)
            split = open_split(tmp_path / "data", manifest, "train", DataSettings(shuffle_rows=200))
            path = tmp_path / "data" / "train" / "part-00001.parquet"
            content = bytearray(path.read_bytes())
            change(content)
            path.unlink()
            if content:
                path.write_bytes(content)
            batches = split.batches(100, rank=0, world_size=1, order=None, keep_last=True)
            for _ in range(5):
                numbers_of(next(batches))
            with pytest.raises(DataError) as caught:
                next(batches)
            return str(caught.value).removeprefix(str(tmp_path))

        return attempt

    def test_a_file_that_is_gone(self, after: Callable[[Callable[[bytearray], None]], str]) -> None:
        assert after(lambda content: content.clear()).startswith(
            "/data/train/part-00001.parquet: cannot be read (No such file or directory)\n"
        )

    def test_bytes_that_are_others(self, after: Callable[[Callable[[bytearray], None]], str]) -> None:
        def overwrite(content: bytearray) -> None:
            content[10:400] = b"\xff" * 390

        assert after(overwrite).startswith("/data/train/part-00001.parquet: is damaged (")

    def test_an_id_outside_its_table(self, tmp_path: Path) -> None:
        manifest = write_numbered(tmp_path, [500, 500], 100)
        fields = (manifest.fields[0].model_copy(update={"rows": 750}), *manifest.fields[1:])
        split = open_split(
            tmp_path, manifest.model_copy(update={"fields": fields}), "train", DataSettings(shuffle_rows=200)
        )
        with pytest.raises(
            DataError,
            match=r"part-00001\.parquet: field row has id 750 in row 250; expected 0 to 749\n",
        ):
            drawn(split, 100, order=None)
