import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from ham_dist.data.format.manifest import REDO, Manifest
from ham_dist.data.reader.batch import Batch
from ham_dist.data.reader.prefetch import NAME
from ham_dist.data.reader.split import Split, open_split
from ham_dist.errors import DataError


@pytest.fixture(scope="module")
def train(prepared: Path, manifest: Manifest) -> Split:
    return open_split(prepared, manifest, "train")


@pytest.fixture(scope="module")
def stored(prepared: Path, manifest: Manifest) -> list[dict[str, object]]:
    return pa.concat_tables(
        [pq.read_table(prepared / shard.file) for shard in manifest.splits["train"].shards]
    ).to_pylist()


def rows_of(batch: Batch) -> list[dict[str, object]]:
    """The batch as rows, read through the KeyedJaggedTensor by key."""
    features = batch.sparse_features.to_dict()
    rows: list[dict[str, object]] = [{"label": int(label)} for label in batch.labels]
    for name, jagged in features.items():
        for row, ids in zip(rows, jagged.to_dense(), strict=True):
            row[name] = ids.tolist() if name == "genres" else int(ids)
    return rows


def one_rank(
    split: Split, batch_size: int, order: tuple[int, int] | None, keep_last: bool = True, start: int = 0
) -> list[list[dict[str, object]]]:
    return [
        rows_of(batch)
        for batch in split.batches(
            batch_size, rank=0, world_size=1, order=order, keep_last=keep_last, start=start
        )
    ]


def test_file_order_is_the_order_of_the_shards(train: Split, stored: list[dict[str, object]]) -> None:
    assert train.rows == len(stored)
    batches = one_rank(train, 128, order=None)
    assert [row for batch in batches for row in batch] == stored
    assert rows_of(train.take(50)) == stored[:50]
    assert train.take(10**6).global_rows == len(stored)


def test_reading_does_not_load_pandas(prepared: Path) -> None:
    """Arrow's to_numpy does, which takes each rank of a run a quarter of a second."""
    program = f"""
import sys
import threading
from pathlib import Path
from ham_dist.data.format.manifest import REDO, Manifest
from ham_dist.data.reader.split import open_split

folder = Path({str(prepared)!r})
split = open_split(folder, Manifest.load(folder), "train")
batches = split.batches(64, rank=0, world_size=1, order=(0, 0), keep_last=True)
assert sum(len(batch.labels) for batch in batches) > 0
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_pass_that_is_dropped_leaves_no_thread(train: Split) -> None:
    before = set(threading.enumerate())
    batches = train.batches(1, rank=0, world_size=1, order=None, keep_last=True)
    next(batches)
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == NAME
    del batches
    thread.join(600)
    assert not thread.is_alive()


def test_batch_is_what_torchrec_takes(train: Split, manifest: Manifest) -> None:
    batch = next(train.batches(64, rank=0, world_size=1, order=(0, 0), keep_last=False))
    assert batch.sparse_features.keys() == manifest.field_names()
    assert batch.sparse_features.stride() == batch.global_rows == 64
    assert batch.labels.dtype == torch.float32
    tables = [
        EmbeddingBagConfig(name=f.name, feature_names=[f.name], embedding_dim=4, num_embeddings=f.rows)
        for f in manifest.fields
    ]
    collection = EmbeddingBagCollection(tables=tables)
    output = collection(batch.sparse_features)
    rows = rows_of(batch)
    for field in ("user", "genres"):
        weight = collection.embedding_bags[field].weight
        wanted = torch.stack([weight[torch.tensor(row[field]).reshape(-1)].sum(0) for row in rows])
        torch.testing.assert_close(output[field], wanted)


@pytest.mark.parametrize("order", [None, (0, 3)])
@pytest.mark.parametrize("keep_last", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_hold_the_global_batch(
    train: Split, order: tuple[int, int] | None, keep_last: bool, world_size: int
) -> None:
    whole = one_rank(train, 100, order, keep_last)
    assert len(whole) == train.steps(100, keep_last)
    assert [len(batch) for batch in whole[:-1]] == [100] * (len(whole) - 1)
    ranks = [
        list(train.batches(100, rank=rank, world_size=world_size, order=order, keep_last=keep_last))
        for rank in range(world_size)
    ]
    for parts, global_batch in zip(zip(*ranks, strict=True), whole, strict=True):
        assert [row for part in parts for row in rows_of(part)] == global_batch
        assert {part.global_rows for part in parts} == {len(global_batch)}
        sizes = [len(part.labels) for part in parts]
        assert max(sizes) - min(sizes) <= 2 * 16


def test_shuffles_are_permutations_that_seed_and_epoch_determine(
    train: Split, stored: list[dict[str, object]]
) -> None:
    def shuffled(*order: int) -> list[dict[str, object]]:
        return [row for batch in one_rank(train, 500, (order[0], order[1])) for row in batch]

    first = shuffled(0, 0)
    assert first == shuffled(0, 0)
    assert first != stored
    assert shuffled(0, 1) != first
    assert shuffled(1, 0) != first
    assert shuffled(-1, 0) != first
    assert sorted(map(str, first)) == sorted(map(str, stored))


@given(data=st.data(), batch_size=st.integers(1, 400), keep_last=st.booleans())
@settings(max_examples=25, deadline=None)
def test_start_goes_on_where_a_pass_was_left(
    train: Split, data: st.DataObject, batch_size: int, keep_last: bool
) -> None:
    start = data.draw(st.integers(0, train.steps(batch_size, keep_last)))
    world_size = data.draw(st.integers(1, min(batch_size, 5)))
    for rank in range(world_size):
        whole = list(
            train.batches(batch_size, rank=rank, world_size=world_size, order=(1, 2), keep_last=keep_last)
        )
        rest = list(
            train.batches(
                batch_size, rank=rank, world_size=world_size, order=(1, 2), keep_last=keep_last, start=start
            )
        )
        assert len(rest) == len(whole) - start
        for batch, wanted in zip(rest, whole[start:], strict=True):
            assert torch.equal(batch.labels, wanted.labels)
            assert torch.equal(batch.sparse_features.values(), wanted.sparse_features.values())
            assert torch.equal(batch.sparse_features.lengths(), wanted.sparse_features.lengths())


def test_a_last_batch_shorter_than_the_ranks_gives_some_an_empty_batch(train: Split) -> None:
    size = train.rows - 1
    last = [
        list(train.batches(size, rank=rank, world_size=2, order=None, keep_last=True))[-1]
        for rank in range(2)
    ]
    assert [len(batch.labels) for batch in last] == [0, 1]
    assert [batch.sparse_features.stride() for batch in last] == [0, 1]
    assert [batch.global_rows for batch in last] == [1, 1]


def test_batch_sizes_that_cannot_be(train: Split) -> None:
    with pytest.raises(DataError, match="batch size 2: fewer rows than the 3 ranks that share them"):
        train.batches(2, rank=0, world_size=3, order=None, keep_last=True)
    with pytest.raises(DataError, match=f"batch size 100000: more rows than the {train.rows} of this split"):
        train.batches(100_000, rank=0, world_size=1, order=None, keep_last=False)
    with pytest.raises(DataError, match="rank 2 of 2 ranks: must be from 0 to 1"):
        train.batches(10, rank=2, world_size=2, order=None, keep_last=False)


def test_unknown_split(prepared: Path, manifest: Manifest) -> None:
    with pytest.raises(DataError, match=r"has no split 'dev'; its splits are train, validation, test"):
        open_split(prepared, manifest, "dev")


class TestDamage:
    """Each damage of a shard is told by file, field and value."""

    @pytest.fixture
    def edit(
        self, prepared: Path, tmp_path: Path, manifest: Manifest
    ) -> Callable[[Callable[[pa.Table], pa.Table]], str]:
        """Changes the second training shard, opens the split and gives the message."""

        def attempt(change: Callable[[pa.Table], pa.Table]) -> str:
            shutil.copytree(prepared, tmp_path / "copy", dirs_exist_ok=True)
            path = tmp_path / "copy" / "train" / "part-00001.parquet"
            pq.write_table(change(pq.read_table(path)), path)
            with pytest.raises(DataError) as caught:
                open_split(tmp_path / "copy", manifest, "train")
            return str(caught.value).replace(str(tmp_path), "")

        return attempt

    @pytest.mark.parametrize("wrong", [-1, 61])
    def test_id_outside_its_table(
        self, edit: Callable[[Callable[[pa.Table], pa.Table]], str], wrong: int
    ) -> None:
        message = edit(lambda table: put(table, "user", pa.array([1] * 5 + [wrong] + [1] * 694, pa.int32())))
        assert message.startswith(
            f"/copy/train/part-00001.parquet: field user has id {wrong} in row 5; expected 0 to 60\n"
        )

    def test_id_outside_its_table_in_a_list(
        self, edit: Callable[[Callable[[pa.Table], pa.Table]], str]
    ) -> None:
        message = edit(
            lambda table: put(table, "genres", pa.array([[1]] * 699 + [[2, 7]], pa.list_(pa.int32())))
        )
        assert message.startswith(
            "/copy/train/part-00001.parquet: field genres has id 7 in row 699; expected 0 to 6\n"
        )

    def test_label(self, edit: Callable[[Callable[[pa.Table], pa.Table]], str]) -> None:
        message = edit(lambda table: put(table, "label", pa.array([0, 2] + [0] * 698, pa.int8())))
        assert message.startswith("/copy/train/part-00001.parquet: label 2 in row 1; expected 0 or 1\n")

    def test_columns_and_rows(self, edit: Callable[[Callable[[pa.Table], pa.Table]], str]) -> None:
        where = "/copy/train/part-00001.parquet: "
        assert edit(lambda table: table.drop_columns("zip")).startswith(
            f"{where}has no column zip; its columns are label, user"
        )
        assert (
            edit(lambda table: put(table, "age", pa.array([1] * 700, pa.int64())))
            == f"{where}column age is int64; expected int32 by the manifest\n  {REDO}"
        )
        assert (
            edit(lambda table: put(table, "age", pa.array([None] + [1] * 699, pa.int32())))
            == f"{where}column age has 1 null values; expected none\n  {REDO}"
        )
        assert (
            edit(lambda table: table.slice(1))
            == f"{where}has 699 rows; expected 700 by the manifest\n  {REDO}"
        )

    def test_missing_and_cut_files(self, prepared: Path, manifest: Manifest, tmp_path: Path) -> None:
        shutil.copytree(prepared, tmp_path / "copy")
        path = tmp_path / "copy" / "test" / "part-00000.parquet"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DataError, match=r"part-00000\.parquet: is damaged \("):
            open_split(tmp_path / "copy", manifest, "test")
        path.unlink()
        with pytest.raises(
            DataError, match=r"part-00000\.parquet: cannot be read \(No such file or directory\)"
        ):
            open_split(tmp_path / "copy", manifest, "test")


def put(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def test_field_order_is_the_manifests_wherever_lists_stand(prepared: Path, manifest: Manifest) -> None:
    """A list between single-valued fields cuts these into two blocks."""
    by_name = {field.name: field for field in manifest.fields}
    names = ["zip", "genres", "user", "age"]
    fewer = manifest.model_copy(update={"fields": tuple(by_name[name] for name in names)})
    batch = open_split(prepared, fewer, "validation").take(20)
    whole = open_split(prepared, manifest, "validation").take(20)
    assert batch.sparse_features.keys() == names
    assert rows_of(batch) == [{name: row[name] for name in ["label", *names]} for row in rows_of(whole)]
