"""Halves of a split, in memory and streamed: rows, order, ranks, state and messages."""

from itertools import chain
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ham_dist.config.schema import DataSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.halves import Half, in_half
from ham_dist.data.reader.split import Split, open_split
from ham_dist.errors import DataError
from tests.support.numbered import numbers_of, write_numbered

SHARDS = (700, 331, 1, 969)
ROWS = sum(SHARDS)
HALVES: tuple[Half, ...] = get_args(Half)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose labels alternate, in row groups of odd and even sizes."""
    out = tmp_path_factory.mktemp("halves") / "data"
    write_numbered(out, SHARDS, row_group=63)
    return out


def opened(folder: Path, half: Half | None, shuffle_rows: int = 256) -> Split:
    manifest = Manifest.load(folder)
    return open_split(folder, manifest, "train", DataSettings(shuffle_rows=shuffle_rows), half)


def drawn(split: Split, order: tuple[int, int] | None, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    batches = split.batches(90, rank=rank, world_size=world_size, order=order, keep_last=True)
    return [numbers_of(batch) for batch in batches]


@pytest.mark.parametrize("shuffle_rows", [256, 10**6], ids=["streamed", "in memory"])
def test_each_pair_of_rows_has_one_row_in_each_half(folder: Path, shuffle_rows: int) -> None:
    first, second = (
        list(chain.from_iterable(drawn(opened(folder, half, shuffle_rows), order=None))) for half in HALVES
    )
    assert sorted(first + second) == list(range(ROWS))
    pairs = ROWS // 2
    assert [row // 2 for row in first[:pairs]] == [row // 2 for row in second[:pairs]] == list(range(pairs))
    assert abs(len(first) - len(second)) == ROWS % 2
    assert len(first) == opened(folder, "first", shuffle_rows).rows
    # Neither half is the even or the odd rows: about a half of each.
    assert abs(sum(row % 2 for row in first) - pairs / 2) < 4 * (pairs / 4) ** 0.5


def test_halves_do_not_depend_on_row_groups_shards_or_shuffle_rows(folder: Path, tmp_path: Path) -> None:
    write_numbered(tmp_path / "other", (ROWS,), row_group=500)
    for half in HALVES:
        rows = set(np.flatnonzero(in_half(0, ROWS, half)).tolist())
        for split in (opened(folder, half), opened(folder, half, 10**6), opened(tmp_path / "other", half)):
            assert set(chain.from_iterable(drawn(split, order=(3, 1)))) == rows


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("shuffle_rows", [256, 10**6], ids=["streamed", "in memory"])
def test_ranks_together_hold_the_batches_of_one_rank(folder: Path, half: Half, shuffle_rows: int) -> None:
    split = opened(folder, half, shuffle_rows)
    for order in (None, (5, 2)):
        whole = drawn(split, order)
        for world_size in (2, 3):
            ranks = [drawn(split, order, rank, world_size) for rank in range(world_size)]
            assert [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)] == whole


@pytest.mark.parametrize("shuffle_rows", [256, 10**6], ids=["streamed", "in memory"])
def test_state_of_one_half_is_refused_by_the_other(folder: Path, shuffle_rows: int) -> None:
    passes = {
        half: opened(folder, half, shuffle_rows).batches(
            90, rank=0, world_size=1, order=(0, 0), keep_last=False
        )
        for half in (None, *HALVES)
    }
    next(passes["first"])
    state = passes["first"].state_dict()
    rest = [numbers_of(batch) for batch in passes["first"]]
    again = opened(folder, "first", shuffle_rows).batches(
        90, rank=0, world_size=1, order=(0, 0), keep_last=False
    )
    again.load_state_dict(state)
    assert [numbers_of(batch) for batch in again] == rest
    for other in (None, "second"):
        with pytest.raises(DataError, match="data = "):
            passes[other].load_state_dict(state)


def test_whole_split_keeps_the_identity_that_older_checkpoints_have(folder: Path) -> None:
    manifest = Manifest.load(folder)
    assert open_split(folder, manifest, "train").identity == opened(folder, None).identity
    assert len({opened(folder, half).identity for half in (None, *HALVES)}) == 3


def test_only_label(folder: Path, tmp_path: Path) -> None:
    for half in (None, *HALVES):
        assert opened(folder, half).only_label() is None
    write_numbered(tmp_path / "data", (200,), row_group=50)
    _change(tmp_path / "data", "label", in_half(0, 200, "second").astype(np.int8))
    assert opened(tmp_path / "data", None).only_label() is None
    assert [opened(tmp_path / "data", half).only_label() for half in HALVES] == [0, 1]


def test_message_about_a_bad_row_has_its_number_in_the_file(tmp_path: Path) -> None:
    write_numbered(tmp_path / "data", (100, 100), row_group=30)
    rows = {half: int(np.flatnonzero(in_half(0, 200, half))[75]) for half in HALVES}
    for half, row in rows.items():
        assert 100 < row < 200
        values = np.arange(100, 200, dtype=np.int32)
        values[row - 100] = 5000
        _change(tmp_path / "data", "row", values, shard=1)
        message = f"part-00001.parquet: field row has id 5000 in row {row - 100}; expected"
        with pytest.raises(DataError, match=message):
            opened(tmp_path / "data", half, 10**6)
        opened(tmp_path / "data", "second" if half == "first" else "first", 10**6)


def _change(folder: Path, column: str, values: np.ndarray, shard: int = 0) -> None:
    path = folder / "train" / f"part-{shard:05d}.parquet"
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values)), path, row_group_size=30)
