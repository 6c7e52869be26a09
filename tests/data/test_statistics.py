import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.data.format.manifest import SPLITS, Manifest, SplitEntry
from ham_dist.data.statistics import ALARM, DatasetStatistics, FieldStatistics, compute_statistics
from ham_dist.data.synthetic.write import generate
from ham_dist.errors import DataError

SETTINGS = SyntheticSettings(
    rows=20_000, planted_ranks=(2, 1, 1), num_embeddings=(900, 20, 5000), missing=0.15
)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("look") / "a[1]*"  # DuckDB takes such a path for a pattern
    generate(SETTINGS, out)
    return out


def test_a_flipped_bit_is_refused(generated: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(generated, tmp_path / "data"))
    shard = next((folder / "test").iterdir())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=rf"{shard.name}: its content has changed"):
        compute_statistics(folder, Manifest.load(folder), 16)


def _counts(folder: Path, manifest: Manifest, field: str) -> dict[str, Counter[int]]:
    """How often each split has each id, counted row by row."""
    counts = {}
    for split in SPLITS:
        column = pa.concat_tables(
            [pq.read_table(folder / shard.file) for shard in manifest.splits[split].shards]
        )[field].to_pylist()
        counts[split] = Counter(id for cell in column for id in (cell if isinstance(cell, list) else [cell]))
    return counts


def _check(look: DatasetStatistics, folder: Path, manifest: Manifest) -> None:
    for field in look.fields:
        counts = _counts(folder, manifest, field.name)
        total = {split: counts[split].total() for split in SPLITS}
        assert field.zero == pytest.approx({split: counts[split][0] / total[split] for split in SPLITS})
        unseen = {
            split: sum(n for id, n in counts[split].items() if id and id not in counts["train"])
            / total[split]
            for split in SPLITS[1:]
        }
        assert field.unseen == pytest.approx(unseen)
        known = sorted((n for id, n in counts["train"].items() if id), reverse=True)
        heads = [-(-(field.rows - 1) // part) for part in (1000, 100, 10, 2)]
        assert list(field.head.values()) == pytest.approx(
            [sum(known[:ids]) / total["train"] for ids in heads]
        )
        assert list(field.head) == ["0.1%", "1%", "10%", "50%"]
        assert (field.ids_seen, field.ids_seen_once) == (len(known), known.count(1))


def test_figures_are_those_of_counting_row_by_row(generated: Path) -> None:
    manifest = Manifest.load(generated)
    look = compute_statistics(generated, manifest, 16)
    _check(look, generated, manifest)
    assert any(field.unseen["test"] > 0 for field in look.fields)
    assert [field.bytes for field in look.fields] == [900 * 16 * 4, 20 * 16 * 4, 5000 * 16 * 4]
    assert compute_statistics(generated, manifest, 3).bytes == 3 * 4 * 5920
    assert {name: split.label_rate for name, split in look.splits.items()} == {
        name: entry.positives / entry.rows for name, entry in manifest.splits.items()
    }
    assert (look.rows_in, look.rows_dropped, look.rejected) == (20_000, 0, {})


def test_multi_valued_fields_are_counted_by_value(prepared: Path, manifest: Manifest) -> None:
    look = compute_statistics(prepared, manifest, 16)
    _check(look, prepared, manifest)
    assert [field.name for field in look.fields if field.multi_valued] == ["genres"]
    assert look.fields[2].bytes == manifest.fields[2].rows * manifest.fields[2].rows * 4, (
        "no table is wider than it has rows"
    )


def test_alarm_where_validation_holds_what_training_lacks(tmp_path: Path, generated: Path) -> None:
    assert compute_statistics(generated, Manifest.load(generated), 16).alarms == []
    generate(
        SETTINGS.model_copy(update={"rows": 2000, "num_embeddings": (900, 20, 100_000), "skew": 0.0}),
        tmp_path / "sparse",
    )
    look = compute_statistics(tmp_path / "sparse", Manifest.load(tmp_path / "sparse"), 16)
    assert len(look.alarms) == 4
    assert look.alarms[2].startswith(
        "field field_2: "
        f"{look.fields[2].zero['validation'] + look.fields[2].unseen['validation']:.1%} of the validation"
    )
    _check(look, tmp_path / "sparse", Manifest.load(tmp_path / "sparse"))


@pytest.mark.parametrize(
    ("zero", "unseen", "alarms"),
    [(0.30, 0.0, 0), (0.2, ALARM - 0.001, 0), (0.2, ALARM + 0.001, 1), (0.31, 0.0, 1)],
)
def test_alarm_is_for_more_than_training_has(zero: float, unseen: float, alarms: int) -> None:
    from ham_dist.data.statistics import _alarms

    field = FieldStatistics(
        name="a", rows=9, multi_valued=False, bytes=9, head={}, ids_seen=1, ids_seen_once=1,
        zero={"train": 0.2, "validation": zero, "test": 0.0}, unseen={"validation": unseen, "test": 0.0},
    )  # fmt: skip
    assert len(list(_alarms(field))) == alarms


def test_a_split_without_rows(prepared: Path, manifest: Manifest) -> None:
    empty = manifest.model_copy(
        update={"splits": manifest.splits | {"test": SplitEntry(rows=0, positives=0, shards=())}}
    )
    look = compute_statistics(prepared, empty, 16)
    assert look.splits["test"].label_rate is None
    assert {field.zero["test"] for field in look.fields} == {0.0}


def test_shards_that_are_missing_or_damaged(tmp_path: Path) -> None:
    manifest = generate(SETTINGS.model_copy(update={"rows": 1000}), tmp_path / "data")
    path = tmp_path / "data" / manifest.splits["train"].shards[0].file
    content = path.read_bytes()
    path.write_bytes(b"\0" * len(content))
    with pytest.raises(DataError, match="its content has changed"):
        compute_statistics(tmp_path / "data", manifest, 16)
    path.unlink()
    with pytest.raises(DataError, match=r"part-00000\.parquet: is missing"):
        compute_statistics(tmp_path / "data", manifest, 16)
