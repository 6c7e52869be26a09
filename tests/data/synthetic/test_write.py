import hashlib
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.split import open_split
from ham_dist.data.synthetic import write as synthetic
from ham_dist.data.synthetic.planted import Planted
from ham_dist.data.synthetic.write import ROWS_PER_SHARD, generate, generate_shard, split_sizes
from ham_dist.errors import DataError
from tests.support.encoded import encode_raw
from tests.support.kill_at import killed_at_change

SMALL = SyntheticSettings(rows=20_000)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "small"
    generate(SMALL, out)
    return out


def _digests(folder: Path) -> list[str]:
    return [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    ]


def test_the_folder_is_one_that_prepare_could_have_written(small: Path) -> None:
    manifest = Manifest.load(small)
    manifest.check(small, deep=True)
    assert {name: entry.rows for name, entry in manifest.splits.items()} == {
        "train": 16_000,
        "validation": 2000,
        "test": 2000,
    }
    assert [(field.name, field.rows) for field in manifest.fields] == [
        (f"field_{n}", rows) for n, rows in enumerate(SMALL.num_embeddings)
    ]
    assert manifest.recipe is None
    assert manifest.settings is not None
    written = {**manifest.settings, "num_embeddings": manifest.settings["cardinalities"]}
    del written["cardinalities"]
    assert SyntheticSettings.model_validate(written) == SMALL
    assert manifest.truth is not None
    assert manifest.truth.planted_ranks == {f"field_{n}": rank for n, rank in enumerate(SMALL.planted_ranks)}
    assert open_split(small, manifest, "test").take(7).sparse_features.keys() == manifest.field_names()


def test_scoring_reads_generated_values(small: Path) -> None:
    path = small / "test/part-00000.parquet"
    ids = encode_raw(None, small / "vocabulary", path)
    assert ids.to_pydict() == pq.read_table(path).drop_columns("label").to_pydict()


def test_vocabulary_counts_the_training_split(small: Path) -> None:
    ids = pq.read_table(small / "train/part-00000.parquet")["field_3"].to_numpy()
    vocabulary = pq.read_table(small / "vocabulary/field_3.parquet")
    assert vocabulary["value"].to_pylist() == [str(id) for id in range(1, 200)]
    assert vocabulary["count"].to_pylist() == np.bincount(ids, minlength=200)[1:].tolist()


def test_same_settings_same_bytes_other_seed_other_rows(small: Path, tmp_path: Path) -> None:
    again = generate(SMALL, tmp_path / "again")
    assert _digests(tmp_path / "again") == _digests(small)
    assert generate(SMALL, tmp_path / "again") == again, "what is there is left alone"
    with pytest.raises(
        DataError, match="holds synthetic with seed 0, which differs in settings, seed; nothing was written"
    ):
        generate(SMALL.model_copy(update={"seed": 1}), tmp_path / "again")
    other = generate(SMALL.model_copy(update={"seed": 1}), tmp_path / "other")
    assert not {shard.sha256 for split in other.splits.values() for shard in split.shards} & set(
        _digests(small)
    )


def test_any_chunk_can_be_generated_alone(small: Path) -> None:
    ids, labels, _ = Planted(SMALL).chunk("validation", 0, 2000)
    stored = pq.read_table(small / "validation/part-00000.parquet")
    assert stored["label"].to_pylist() == labels.tolist()
    assert stored["field_2"].to_pylist() == ids[2].tolist()


def test_bayes_auc_is_a_ceiling_that_leaves_room(small: Path) -> None:
    truth = Manifest.load(small).truth
    assert truth is not None
    assert truth.bayes_auc is not None
    assert 0.8 < truth.bayes_auc < 0.95
    assert 0.3 < truth.bayes_log_loss < 0.6


def test_settings_that_plant_nothing_that_shows(tmp_path: Path) -> None:
    def message(**changes: object) -> str:
        with pytest.raises(DataError) as caught:
            generate(SyntheticSettings.model_validate(SMALL.model_dump() | changes), tmp_path / "out")
        return str(caught.value)

    assert "fewer than two fields have a rank above 0" in message(
        planted_ranks=(3, 0), num_embeddings=(10, 10)
    )
    assert message(planted_ranks=(6, 2, 1), num_embeddings=(50, 3, 10), rows=10).splitlines() == [
        "synthetic.rows = 10: set at least 1000, so that each split has both labels",
        "synthetic.planted_ranks: field_0 has 6, but all other fields together only 3;"
        " expected at most as many as the others",
        "synthetic.num_embeddings: field_1 has 3; planted rank 2 needs at least 4",
    ]


def test_an_odd_number_of_rows(tmp_path: Path) -> None:
    manifest = generate(SMALL.model_copy(update={"rows": 1009}), tmp_path / "out")
    assert {name: entry.rows for name, entry in manifest.splits.items()} == {
        "train": 809,
        "validation": 100,
        "test": 100,
    }
    assert (
        pa.concat_tables(
            [pq.read_table(tmp_path / "out" / shard.file) for shard in manifest.splits["train"].shards]
        ).num_rows
        == 809
    )


def test_rows_of_the_default_settings_stay_what_results_were_measured_on(tmp_path: Path) -> None:
    """What the files hold, not their bytes, which may change with Parquet's encoding."""
    generate(SyntheticSettings(), tmp_path / "out")
    digest = hashlib.sha256()
    for path in sorted((tmp_path / "out").rglob("*.parquet")):
        table = pq.read_table(path)
        digest.update(str(path.relative_to(tmp_path / "out")).encode())
        for name in table.column_names:
            column = table[name]
            digest.update(name.encode())
            digest.update(
                "\n".join(column.to_pylist()).encode() if name == "value" else column.to_numpy().tobytes()
            )
    assert digest.hexdigest() == "9df5f41fb4837e1771924b1c3e61fc5c29569a9c7e9e08129f21346fe2e0e749"


TWO_SHARDS = SyntheticSettings(
    rows=ROWS_PER_SHARD * 3 // 2, planted_ranks=(2, 1, 1), num_embeddings=(50, 30, 20), missing=0.1
)


@pytest.fixture(scope="module")
def two_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "two"
    generate(TWO_SHARDS, out)
    return out


def test_any_shard_can_be_made_alone(two_shards: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(two_shards)
    assert len(manifest.splits["train"].shards) == 2
    shard, positives = generate_shard(Planted(TWO_SHARDS), "train", 1, tmp_path)
    assert shard == manifest.splits["train"].shards[1]
    assert (tmp_path / shard.file).read_bytes() == (two_shards / shard.file).read_bytes()
    first = pq.read_table(two_shards / "train/part-00000.parquet")["label"].to_numpy()
    assert manifest.splits["train"].positives == positives + first.sum()


def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_bytes(
    two_shards: Path, tmp_path: Path
) -> None:
    out, draw = tmp_path / "out", random.Random(0)
    program = f"""
from ham_dist.config.synthetic import SyntheticSettings
from ham_dist.data.synthetic.write import generate
generate(SyntheticSettings.model_validate({TWO_SHARDS.model_dump()!r}), {str(out)!r})
"""
    assert killed_at_change(program, 6, tmp_path), "it changes more files than that"
    for _ in range(4):
        killed_at_change(
            program, draw.randint(1, 12), tmp_path, delay=draw.choice([0.0, 0.1 * draw.random()])
        )
    generate(TWO_SHARDS, out)
    assert _digests(out) == _digests(two_shards)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_finished_before_a_stop_is_kept(
    two_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    whole = Planted.chunk

    def chunk(
        planted: Planted, split: str, number: int, rows: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        made.append(f"{split} {number}")
        if len(made) == 6:
            raise KeyboardInterrupt
        return whole(planted, split, number, rows)

    monkeypatch.setattr(Planted, "chunk", chunk)
    with pytest.raises(KeyboardInterrupt):
        generate(TWO_SHARDS, tmp_path / "out")
    assert made == [f"train {number}" for number in range(6)]
    generate(TWO_SHARDS, tmp_path / "out")
    assert made[6:8] == ["train 5", "validation 0"]
    assert _digests(tmp_path / "out") == _digests(two_shards)


def test_what_other_settings_left_behind_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "_truth", lambda planted: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(SMALL.model_copy(update={"seed": 5}), tmp_path / "out")
    monkeypatch.undo()
    generate(SMALL, tmp_path / "out")
    generate(SMALL, tmp_path / "elsewhere")
    assert _digests(tmp_path / "out") == _digests(tmp_path / "elsewhere")


def test_fields_counted_in_several_passes_are_counted_alike(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "_COUNTED_TOGETHER", 650)
    generate(SMALL, tmp_path / "out")
    assert _digests(tmp_path / "out") == _digests(small)


def test_splits_are_eight_tenths_and_a_tenth_each() -> None:
    assert split_sizes(1009) == {"train": 809, "validation": 100, "test": 100}
