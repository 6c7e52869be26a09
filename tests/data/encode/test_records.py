import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ham_dist.data.format.manifest import Manifest
from ham_dist.data.format.shards import VOCABULARY_SCHEMA, write_shard
from ham_dist.data.recipe.fields import Format
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError
from tests.support.encoded import encode_raw
from tests.support.prepared import tenth
from tests.support.raw_movielens import read_lines, write_lines, write_raw_movielens


def test_scoring_gives_the_ids_that_training_had(
    raw: Path, prepared: Path, manifest: Manifest, recipe: Recipe
) -> None:
    """Raw folder -> ids of all rows, those without a label too; cut as prepare cuts, they are the shards."""
    ids = encode_raw(recipe, prepared / "vocabulary", raw)
    ratings = [line[2] for line in read_lines(raw / "ratings.dat")]
    assert ids.num_rows == len(ratings) == 3000
    for split, tenths in (("train", range(8)), ("validation", (8,)), ("test", (9,))):
        places = [row for row, rating in enumerate(ratings) if rating != "3" and tenth(row, 0) in tenths]
        stored = pa.concat_tables(
            [pq.read_table(prepared / shard.file) for shard in manifest.splits[split].shards]
        ).drop_columns("label")
        assert ids.take(places).to_pylist() == stored.to_pylist()


def in_csv(recipe: Recipe) -> Recipe:
    """The recipe for text with commas, quotes and a header."""
    return recipe.model_copy(update={"format": Format(separator=",", quote='"', header=True)})


def test_text_and_lists_and_raw_files_agree(
    raw: Path, prepared: Path, recipe: Recipe, tmp_path: Path
) -> None:
    wanted = encode_raw(recipe, prepared / "vocabulary", raw)
    users = {line[0]: line for line in read_lines(raw / "users.dat")}
    movies = {line[0]: line[2] for line in read_lines(raw / "movies.dat")}
    records = [[*users[user], movie, movies[movie]] for user, movie, _, _ in read_lines(raw / "ratings.dat")]
    names = ["user", "gender", "age", "occupation", "zip", "movie", "genres"]
    table = pa.table(
        {name: list(column) for name, column in zip(names, zip(*records, strict=True), strict=True)}
    )
    wide = in_csv(recipe)
    pyarrow.csv.write_csv(table, tmp_path / "records.csv")
    pq.write_table(table, tmp_path / "text.parquet")
    genres = pa.array([record[-1].split("|") for record in records])
    numbers = table.set_column(0, "user", table["user"].cast(pa.int16())).set_column(6, "genres", genres)
    pq.write_table(numbers, tmp_path / "numbers.parquet", row_group_size=500)
    for name, by in (("records.csv", wide), ("text.parquet", recipe), ("numbers.parquet", recipe)):
        assert encode_raw(by, prepared / "vocabulary", tmp_path / name).equals(wanted), name


def test_unknown_and_missing_values_are_0(prepared: Path, recipe: Recipe, tmp_path: Path) -> None:
    known = {"gender": "F", "genres": "Drama"}
    female, drama = (
        next(
            row["id"]
            for row in pq.read_table(prepared / f"vocabulary/{field}.parquet").to_pylist()
            if row["value"] == value
        )
        for field, value in known.items()
    )
    table = pa.table(
        {
            "gender": ["F", None, "", "f", "F "],
            "genres": pa.array(
                [["Drama", "Nope", "Drama"], None, [], [None, "", "Drama"], ["Drama|Drama"]],
                pa.list_(pa.string()),
            ),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    ids = encode_raw(recipe, prepared / "vocabulary", tmp_path / "x.parquet", fields=["genres", "gender"])
    assert ids.to_pydict() == {
        "genres": [[drama, 0, drama], [0], [0], [drama], [0]],
        "gender": [female, 0, 0, 0, 0],
    }
    (tmp_path / "x.csv").write_text(
        f'gender,genres,extra\nF,Drama||Nope,1\n,,\n"F","|",x\n{"z" * 50},Drama,\n'
    )
    ids = encode_raw(in_csv(recipe), prepared / "vocabulary", tmp_path / "x.csv", fields=["gender", "genres"])
    assert ids.to_pydict() == {"gender": [female, 0, female, 0], "genres": [[drama, 0], [0], [0], [drama]]}


def test_no_records(prepared: Path, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("gender,genres\n")
    ids = encode_raw(in_csv(recipe), prepared / "vocabulary", tmp_path / "x.csv", fields=["gender", "genres"])
    assert ids.num_rows == 0
    assert ids.schema == pa.schema([("gender", pa.int32()), ("genres", pa.list_(pa.int32()))])


values = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="|"), min_size=1, max_size=8
)


@given(vocabulary=st.lists(values, unique=True, min_size=1, max_size=12), data=st.data())
@settings(max_examples=30, deadline=None)
def test_decoded_ids_are_the_values_again(
    vocabulary: list[str], data: st.DataObject, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("round")
    table = pa.table(
        {"value": vocabulary, "id": range(1, len(vocabulary) + 1), "count": [1] * len(vocabulary)}
    )
    value = st.sampled_from(vocabulary) | values
    records = data.draw(
        st.lists(st.tuples(st.none() | value, st.lists(value, max_size=4)), min_size=1, max_size=20)
    )
    in_lists = data.draw(st.booleans())
    for field in ("zip", "genres"):
        write_shard(folder, f"vocabulary/{field}.parquet", [table.cast(VOCABULARY_SCHEMA)], VOCABULARY_SCHEMA)
    zips = pa.array([one for one, _ in records], pa.string())
    genres = [several if in_lists else "|".join(several) for _, several in records]
    records_table = pa.table(
        {"zip": zips, "genres": pa.array(genres, pa.list_(pa.string()) if in_lists else pa.string())}
    )
    pq.write_table(records_table, folder / "records.parquet")
    ids = encode_raw(
        recipe, folder / "vocabulary", folder / "records.parquet", fields=["zip", "genres"]
    ).to_pydict()
    decode = [None, *vocabulary]

    def known(value: str | None) -> str | None:
        return value if value in vocabulary else None

    wanted = [[known(value) for value in several] or [None] for _, several in records]
    assert [decode[one] for one in ids["zip"]] == [known(one) for one, _ in records]
    assert [[decode[id] for id in several] for several in ids["genres"]] == wanted


latin = st.text(
    st.characters(codec="latin-1", exclude_categories=["Cc"], exclude_characters=":|\x85"),
    min_size=1,
    max_size=8,
)


@given(zips=st.lists(latin, min_size=1, max_size=8))
@settings(max_examples=15, deadline=None)
def test_raw_text_is_taken_letter_by_letter(
    zips: list[str], recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("letters")
    write_lines(folder / "users.dat", (f"{user}::F::1::1::{zip_code}" for user, zip_code in enumerate(zips)))
    write_lines(folder / "movies.dat", ["1::x::Drama"])
    write_lines(folder / "ratings.dat", (f"{user}::1::3::0" for user in reversed(range(len(zips)))))
    distinct = sorted(set(zips))
    vocabulary = pa.table(
        {"value": distinct, "id": range(1, len(distinct) + 1), "count": [1] * len(distinct)},
        schema=VOCABULARY_SCHEMA,
    )
    write_shard(folder, "vocabulary/zip.parquet", [vocabulary], VOCABULARY_SCHEMA)
    ids = encode_raw(recipe, folder / "vocabulary", folder, fields=["zip"])["zip"].to_pylist()
    assert [distinct[id - 1] for id in ids] == zips[::-1]


class TestMistakes:
    @pytest.fixture
    def message(self, prepared: Path, recipe: Recipe) -> Any:
        def attempt(raw: Path, by: Recipe | None = recipe, **options: Any) -> str:
            with pytest.raises(DataError) as caught:
                encode_raw(
                    by,
                    options.pop("vocabulary", prepared / "vocabulary"),
                    raw,
                    **options,
                )
            return str(caught.value)

        return attempt

    def test_files(self, message: Any, raw: Path, prepared: Path, tmp_path: Path) -> None:
        assert message(tmp_path / "no.csv") == f"{tmp_path}/no.csv: no such file or folder"
        assert message(raw, by=None).startswith(f"{raw}: is a folder, and generated data has no raw files")
        assert message(tmp_path).startswith(f"{tmp_path}: lacks ratings.dat, users.dat, movies.dat")
        assert message(raw, vocabulary=tmp_path) == f"{tmp_path}/user.parquet: no such vocabulary file"
        assert message(raw, fields=["zipp"]).startswith("no field is called zipp; the fields are user, movie")
        (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
        assert message(tmp_path / "x.parquet").startswith(
            f"{tmp_path}/x.parquet: is not a readable Parquet file"
        )

    def test_columns(self, message: Any, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"user": [1.0, None], "genders": ["F", "M"], "age": [[1], [2]]}), path)
        assert (
            message(path, fields=["gender", "zip"])
            == f"{path}: lacks the column gender (did you mean genders?), zip; it has user, genders, age\n"
            f"  The recipe takes these from users.dat: put that file into {tmp_path}, "
            "or give Parquet that has them."
        )
        assert message(path, fields=["user"]).startswith(
            f"{path}: column user is double; expected text or integers"
        )
        assert message(path, fields=["age"]).startswith(
            f"{path}: column age is list<element: int64>; expected text or integers"
        )

    def test_lines(self, message: Any, recipe: Recipe, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_text("gender,age\nF,1\nM\nF,25\n")
        assert message(tmp_path / "x.csv", by=in_csv(recipe), fields=["gender"]) == (
            f"{tmp_path}/x.csv: line 3: 1 column; expected 2, in 'M'\n"
            "  Correct or delete these lines: each record must get a probability."
        )
        broken = write_raw_movielens(tmp_path / "raw", ratings=100)
        lines = (broken / "ratings.dat").read_text().splitlines()
        write_lines(broken / "ratings.dat", [*lines[:40], "1::4", *lines[40:]])
        assert message(broken).startswith(f"{broken}/ratings.dat: line 41: 2 columns; expected 4, in '1::4'")


def test_the_rating_is_not_looked_at(raw: Path, prepared: Path, recipe: Recipe, tmp_path: Path) -> None:
    unrated = write_raw_movielens(tmp_path / "raw")
    write_lines(
        unrated / "ratings.dat",
        (f"{user}::{movie}::?::{time}" for user, movie, _, time in read_lines(raw / "ratings.dat")),
    )
    assert encode_raw(recipe, prepared / "vocabulary", unrated).equals(
        encode_raw(recipe, prepared / "vocabulary", raw)
    )


def test_reading_and_preparing_need_no_torch() -> None:
    modules = "sys, ham_dist.data.encode.record_files, ham_dist.data.prepare.pipeline"
    code = f"import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
