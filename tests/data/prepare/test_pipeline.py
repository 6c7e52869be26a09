import logging
import shutil
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ham_dist.data.encode.expressions import tenth_of
from ham_dist.data.engines.base import Machine
from ham_dist.data.format.manifest import SPLITS, Manifest
from ham_dist.data.format.shards import ROW_GROUP, write_shard
from ham_dist.data.mixing import mix
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.recipe.load import Recipe, load_recipe, parse_recipe
from ham_dist.errors import DataError
from tests.support.prepared import folder_bytes, tenth
from tests.support.raw_movielens import read_lines, write_lines, write_raw_movielens
from tests.support.real_data import ROOT


def plain_python(
    raw: Path, seed: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[tuple[str, int]]]]:
    """The recipe without an engine.

    Returns:
        Rows of each split with raw values, and (value, count) of each field's vocabulary in the order of ids.
    """
    users = {line[0]: line for line in read_lines(raw / "users.dat")}
    movies = {line[0]: line for line in read_lines(raw / "movies.dat")}
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    counts: dict[str, Counter[str]] = {}
    for row, (user, movie, rating, _) in enumerate(read_lines(raw / "ratings.dat")):
        if rating == "3":
            continue
        _, gender, age, occupation, zip_code = users[user]
        values = {
            "user": user,
            "movie": movie,
            "gender": gender,
            "age": age,
            "occupation": occupation,
            "zip": zip_code,
        }
        genres = movies[movie][2].split("|")
        split = "train" if tenth(row, seed) < 8 else "validation" if tenth(row, seed) == 8 else "test"
        splits[split].append({"label": int(int(rating) > 3), **values, "genres": genres})
        if split == "train":
            for field, value in [*values.items(), *(("genres", genre) for genre in genres)]:
                counts.setdefault(field, Counter())[value] += 1
    return splits, {
        field: sorted(counter.items(), key=lambda item: (-item[1], item[0]))
        for field, counter in counts.items()
    }


def test_prepare_gives_what_plain_python_gives(raw: Path, prepared: Path, manifest: Manifest) -> None:
    splits, vocabularies = plain_python(raw, seed=0)
    ids = {}
    for field in manifest.fields:
        stored = pq.read_table(prepared / field.vocabulary.file)
        assert (
            list(zip(stored["value"].to_pylist(), stored["count"].to_pylist(), strict=True))
            == vocabularies[field.name]
        )
        assert stored["id"].to_pylist() == list(range(1, field.rows))
        ids[field.name] = dict(zip(stored["value"].to_pylist(), stored["id"].to_pylist(), strict=True))
    for split, rows in splits.items():
        stored = [
            row
            for shard in manifest.splits[split].shards
            for row in pq.read_table(prepared / shard.file).to_pylist()
        ]

        def encoded(name: str, value: Any) -> Any:
            if name == "label":
                return value
            return [ids[name].get(v, 0) for v in value] if name == "genres" else ids[name].get(value, 0)

        wanted = [{name: encoded(name, value) for name, value in row.items()} for row in rows]
        assert stored == wanted
        assert manifest.splits[split].positives == sum(row["label"] for row in rows)
    assert manifest.rows_in == 3000
    assert manifest.rows_dropped == 3000 - sum(map(len, splits.values()))


def test_values_that_training_never_saw_are_unknown(raw: Path, prepared: Path, manifest: Manifest) -> None:
    splits, vocabularies = plain_python(raw, seed=0)
    seen = {value for value, _ in vocabularies["movie"]}
    unseen = [
        row["movie"] for split in ("validation", "test") for row in splits[split] if row["movie"] not in seen
    ]
    assert unseen, "the small MovieLens should have such a movie"
    stored = [shard.file for split in ("validation", "test") for shard in manifest.splits[split].shards]
    zeros = sum(pq.read_table(prepared / file)["movie"].to_pylist().count(0) for file in stored)
    assert zeros == len(unseen)


def test_shards_and_row_groups_have_their_sizes(
    prepared: Path, manifest: Manifest, recipe: Recipe, tmp_path: Path
) -> None:
    rows = [shard.rows for shard in manifest.splits["train"].shards]
    assert rows[:-1] == [700] * (len(rows) - 1)
    assert sum(rows) == manifest.splits["train"].rows
    schema = pq.read_schema(prepared / "train/part-00000.parquet")
    assert [f"{column.name}: {column.type}" for column in schema] == [
        "label: int8",
        *(f"{field}: int32" for field in ("user", "movie", "gender", "age", "occupation", "zip")),
        "genres: list<element: int32>",
    ]
    raw = write_raw_movielens(tmp_path / "raw", ratings=30_000)
    big = prepare(recipe, raw, tmp_path / "out").splits["train"].shards[0]
    parquet = pq.ParquetFile(tmp_path / "out" / big.file)
    assert [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)] == [
        ROW_GROUP,
        big.rows - ROW_GROUP,
    ]


def test_same_bytes_whatever_the_threads_and_the_compression(
    raw: Path, prepared: Path, recipe: Recipe, tmp_path: Path
) -> None:
    for threads in (1, 2):
        prepare(
            recipe, raw, tmp_path / f"threads-{threads}", rows_per_shard=700, machine=Machine(threads=threads)
        )
        assert folder_bytes(tmp_path / f"threads-{threads}") == folder_bytes(prepared)
    prepare(
        recipe,
        write_raw_movielens(tmp_path / "zipped", zipped=True),
        tmp_path / "from-zipped",
        rows_per_shard=700,
    )
    zipped = folder_bytes(tmp_path / "from-zipped")
    plain = folder_bytes(prepared)
    assert zipped.pop("manifest.json") != plain.pop("manifest.json"), "the manifest names the raw files"
    assert zipped == plain


def test_the_seed_changes_the_split_only(
    raw: Path, manifest: Manifest, recipe: Recipe, tmp_path: Path
) -> None:
    other = prepare(recipe, raw, tmp_path / "out", seed=1, rows_per_shard=700)
    assert sum(split.rows for split in other.splits.values()) == sum(
        split.rows for split in manifest.splits.values()
    )
    assert other.splits["test"].shards[0].sha256 != manifest.splits["test"].shards[0].sha256


def test_what_is_there_already_is_left_alone(
    prepared: Path, raw: Path, recipe: Recipe, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    with caplog.at_level(logging.INFO):
        assert prepare(recipe, raw, prepared, rows_per_shard=700) == Manifest.load(prepared)
    assert "already holds this data" in caplog.text
    with pytest.raises(
        DataError, match=r"holds movielens-1m with seed 0, which differs in seed; nothing was written"
    ):
        prepare(recipe, raw, prepared, rows_per_shard=700, seed=1)
    with pytest.raises(DataError, match=r"differs in raw; nothing was written"):
        prepare(recipe, write_raw_movielens(tmp_path / "raw", seed=1), prepared, rows_per_shard=700)
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before


def test_a_folder_with_something_else_is_refused(raw: Path, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    with pytest.raises(DataError, match=r"thesis: already exists; nothing was written"):
        prepare(recipe, raw, tmp_path / "thesis")
    (tmp_path / "empty").mkdir()
    prepare(recipe, raw, tmp_path / "empty").check(tmp_path / "empty", deep=True)


def test_what_failed_goes_on_where_it_stopped(
    raw: Path, prepared: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before each file: only the work folder exists, and no finished file is rewritten."""
    written: list[str] = []

    def write_one(folder: Path, file: str, *rest: Any) -> Any:
        if file in written:
            raise AssertionError(f"{file} is written twice")
        if len(written) % 3 == 2:
            written.append("")
            raise KeyboardInterrupt
        written.append(file)
        return write_shard(folder, file, *rest)

    for module in ("count", "pipeline"):
        monkeypatch.setattr(f"ham_dist.data.prepare.{module}.write_shard", write_one)
    for _ in range(20):
        try:
            prepare(recipe, raw, tmp_path / "out", rows_per_shard=700)
            break
        except KeyboardInterrupt:
            assert [path.name for path in tmp_path.iterdir()] == [".out.ham-work"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert folder_bytes(tmp_path / "out") == folder_bytes(prepared)


def test_pieces_of_other_work_are_not_used(
    raw: Path, prepared: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partial output of another seed, recipe or raw file, interrupted just before its end, is not used."""
    changed = write_raw_movielens(tmp_path / "changed", seed=1)
    other = parse_recipe(recipe.model_dump(mode="json") | {"min_count": 2}, where="test")
    mine = shutil.copytree(raw, tmp_path / "mine")
    for recipe_before, raw_before, seed_before in ((recipe, raw, 1), (other, raw, 0), (recipe, changed, 0)):
        for path in raw_before.iterdir():
            shutil.copyfile(path, mine / path.name)
        with monkeypatch.context() as patched:
            patched.setattr(Manifest, "save", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                prepare(recipe_before, mine, tmp_path / "out", rows_per_shard=700, seed=seed_before)
        for path in raw.iterdir():
            shutil.copyfile(path, mine / path.name)
        prepare(recipe, mine, tmp_path / "out", rows_per_shard=700)
        assert folder_bytes(tmp_path / "out") == folder_bytes(prepared)
        shutil.rmtree(tmp_path / "out")


def test_a_raw_file_replaced_by_a_shorter_one_leaves_nothing_of_the_longer(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raw_movielens(tmp_path / "raw", ratings=3000)
    with monkeypatch.context() as patched:
        patched.setattr("ham_dist.data.prepare.pipeline.Manifest", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe, tmp_path / "raw", tmp_path / "out", rows_per_shard=50)
    left = len(list((tmp_path / ".out.ham-work" / "data" / "train").iterdir()))
    write_raw_movielens(tmp_path / "raw", ratings=1500)
    prepare(recipe, tmp_path / "raw", tmp_path / "out", rows_per_shard=50)
    files = {stored.file for stored in Manifest.load(tmp_path / "out").files()} | {"manifest.json"}
    assert {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    } == files
    assert len([file for file in files if file.startswith("train/")]) < left


def test_into_the_folder_that_one_stands_in(
    raw: Path, prepared: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    prepare(recipe, raw, ".", rows_per_shard=Manifest.load(prepared).rows_per_shard)
    assert folder_bytes(tmp_path / "here") == folder_bytes(prepared)


def test_a_finished_folder_is_left_alone_and_rid_of_what_a_kill_left(
    raw: Path, prepared: Path, recipe: Recipe, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(prepared, tmp_path / "out"))
    (tmp_path / ".out.ham-work").mkdir()
    prepare(
        recipe.model_copy(update={"max_rejected": 0.5}),
        raw,
        out,
        rows_per_shard=Manifest.load(prepared).rows_per_shard,
    )
    assert not (tmp_path / ".out.ham-work").exists()
    assert folder_bytes(out) == folder_bytes(prepared)


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_min_count_makes_rare_values_unknown(raw: Path, recipe: Recipe, tmp_path: Path) -> None:
    rare = parse_recipe(recipe.model_dump(mode="json") | {"min_count": 30}, where="test")
    manifest = prepare(rare, raw, tmp_path / "out")
    _, vocabularies = plain_python(raw, seed=0)
    for field in manifest.fields:
        assert field.rows - 1 == sum(count >= 30 for _, count in vocabularies[field.name])
    assert pq.read_table(tmp_path / "out/train/part-00000.parquet")["user"].to_pylist().count(0) == sum(
        count for _, count in vocabularies["user"] if count < 30
    )


def test_the_split_is_8_1_1_and_unrelated_to_neighbours_and_seeds() -> None:
    rows = range(200_000)
    parts = np.array([tenth(row, 0) for row in rows])
    # Standard deviation of each count is sqrt(200000 * 0.09) = 134.
    assert np.abs(np.bincount(parts, minlength=10) - 20_000).max() < 5 * 134
    pairs = np.bincount(parts[:-1] * 10 + parts[1:], minlength=100)
    assert np.abs(pairs - 2000).max() < 5 * 45
    with_seeds = np.bincount(parts * 10 + np.array([tenth(row, 1) for row in rows]), minlength=100)
    assert np.abs(with_seeds - 2000).max() < 5 * 45


def test_mix_is_one_to_one() -> None:
    assert len({mix(number) for number in range(100_000)}) == 100_000
    assert all(0 <= mix(number) < 2**32 for number in (0, 1, 2**31, 2**32 - 1))


def test_the_split_of_arrays_is_that_of_python_for_any_row_and_seed() -> None:
    rows = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 7]
    for seed in (0, 1, -1, 2**31, 2**33 + 5):
        assert tenth_of(np.array(rows), seed).tolist() == [tenth(row, seed) for row in rows]


def test_values_stand_as_they_are_written(recipe: Recipe, tmp_path: Path) -> None:
    raw = write_raw_movielens(tmp_path / "raw")
    users = read_lines(raw / "users.dat")
    users[0][4], users[1][4], users[2][4] = " 007", '"48"', "M\xfcnchen"
    write_lines(raw / "users.dat", ("::".join(line) for line in users))
    prepare(recipe, raw, tmp_path / "out")
    assert {" 007", '"48"', "M\xfcnchen"} <= set(
        pq.read_table(tmp_path / "out/vocabulary/zip.parquet")["value"].to_pylist()
    )


def test_line_ends_of_windows_change_nothing(
    raw: Path, manifest: Manifest, recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    for path in raw.iterdir():
        (tmp_path / "raw" / path.name).write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert prepare(recipe, tmp_path / "raw", tmp_path / "out", rows_per_shard=700).files() == manifest.files()


class TestRealMovieLens:
    def test_rows_and_positives_are_those_of_the_paper(self, real: Path) -> None:
        manifest = Manifest.load(real)
        assert manifest.rows_in == 1_000_209
        assert manifest.rows_dropped == 261_197
        assert sum(split.rows for split in manifest.splits.values()) == 739_012
        assert sum(split.positives for split in manifest.splits.values()) == 575_281
        share = {split: entry.rows / 739_012 for split, entry in manifest.splits.items()}
        assert share == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.001)
        manifest.check(real, deep=True)

    def test_cardinalities(self, real: Path) -> None:
        rows = Manifest.load(real).num_embeddings()
        assert rows.pop("movie") < 3707, "movies that training never saw have no id"
        assert rows == {"user": 6041, "gender": 3, "age": 8, "occupation": 22, "zip": 3440, "genres": 19}

    def test_ids_go_by_count_and_then_value(self, real: Path) -> None:
        for field in Manifest.load(real).fields:
            table = pq.read_table(real / field.vocabulary.file).to_pydict()
            keys = [
                (-count, value.encode()) for count, value in zip(table["count"], table["value"], strict=True)
            ]
            assert keys == sorted(keys)
            assert table["id"] == list(range(1, field.rows))


def test_a_label_column_called_label_in_other_letters(tmp_path: Path, raw: Path) -> None:
    """DuckDB takes Label for label: the label must be the rule's 0 or 1, not the raw number."""
    settings = tomllib.loads((ROOT / "datasets" / "movielens-1m.toml").read_text(encoding="utf-8"))
    settings["samples"]["columns"] = ["user", "movie", "Label", "timestamp"]
    settings["label"]["column"] = "Label"
    manifest = prepare(parse_recipe(settings, where="test"), raw, tmp_path / "out")
    plain = prepare(load_recipe("movielens-1m"), raw, tmp_path / "plain")
    assert manifest.rows_dropped == plain.rows_dropped
    assert {name: split.positives for name, split in manifest.splits.items()} == {
        name: split.positives for name, split in plain.splits.items()
    }


def test_raw_files_stay_where_the_output_is_a_folder_next_to_them(recipe: Recipe, tmp_path: Path) -> None:
    """As in `--raw . --out data`; the folder of the raw files itself is no output."""
    raw = write_raw_movielens(tmp_path / "raw", ratings=50)
    before = {path: path.read_bytes() for path in raw.iterdir()}
    with pytest.raises(DataError, match="already exists; nothing was written"):
        prepare(recipe, raw, raw)
    prepare(recipe, raw, raw / "out")
    assert {path: path.read_bytes() for path in raw.iterdir() if path.is_file()} == before
    assert sorted(path.name for path in raw.iterdir() if path not in before) == ["out"]
