import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from ham_dist.data.synthetic import criteo_text
from ham_dist.data.synthetic.criteo_text import (
    CHUNK,
    CLICKS,
    NUM_EMBEDDINGS,
    criteo_chunk,
    write_criteo_days,
    write_criteo_file,
)
from ham_dist.errors import DataError

ROWS = CHUNK


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return criteo_chunk(0, 0, 0, ROWS)


def _share_missing(column: pa.ChunkedArray) -> float:
    return column.null_count / len(column)


def test_columns_are_criteos(table: pa.Table) -> None:
    assert table.column_names == ["label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]
    assert table["label"].to_numpy().sum() == round(ROWS * CLICKS)
    for number in range(1, 27):
        values = table[f"C{number}"].drop_null().to_pylist()
        assert all(
            len(value) == 8 and int(value, 16) >= 0 and value == value.lower() for value in values[:1000]
        )
        assert len(set(values)) <= NUM_EMBEDDINGS[number - 1]
    assert len(set(table["C3"].to_pylist())) > 10_000


def test_integers_are_counts_with_a_heavy_tail_and_some_negative_ones(table: pa.Table) -> None:
    column = table["I2"].drop_null().to_numpy()
    assert set(column[column < 0]) == {-1, -2}
    assert (column < 0).mean() == pytest.approx(0.1, abs=0.01)
    assert np.quantile(column, 0.999) > 100 * np.median(column)
    assert min(table[f"I{number}"].drop_null().to_numpy().min() for number in (1, *range(3, 14))) == 0


def test_values_are_missing_at_the_measured_rates(table: pa.Table) -> None:
    rates = [_share_missing(table[name]) for name in table.column_names[1:]]
    expected = [missing for missing, *_ in criteo_text._INTEGERS] + list(criteo_text._MISSING)
    np.testing.assert_allclose(rates, expected, atol=0.01)


def test_the_first_categories_tell_of_clicks_and_the_last_do_not(table: pa.Table) -> None:
    labels = table["label"].to_numpy()

    def spread(name: str) -> float:
        """Of the click rate over the values seen often, in standard errors."""
        values, places, counts = np.unique(
            table[name].fill_null("").to_numpy(zero_copy_only=False), return_inverse=True, return_counts=True
        )
        often = counts > 500
        rates = np.bincount(places, weights=labels, minlength=len(values))[often] / counts[often]
        return float(np.abs((rates - CLICKS) / np.sqrt(CLICKS * (1 - CLICKS) / counts[often])).max())

    assert spread("C1") > 10
    assert spread("C17") < 5


def test_a_file_is_its_chunks_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteo_text, "CHUNK", 400)
    write_criteo_file(tmp_path / "train.txt", 1000, seed=3)
    names = criteo_chunk(3, 0, 0, 1).column_names
    read = pyarrow.csv.read_csv(
        tmp_path / "train.txt",
        read_options=pyarrow.csv.ReadOptions(column_names=names),
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=criteo_chunk(3, 0, 0, 1).schema, strings_can_be_null=True
        ),
    )
    chunks = [criteo_chunk(3, 0, number, rows) for number, rows in enumerate((400, 400, 200))]
    assert read.combine_chunks() == pa.concat_tables(chunks).combine_chunks()
    assert (tmp_path / "train.txt").read_bytes().count(b"\t") == 39 * 1000


def test_gzipped_text_is_the_same_text_and_always_the_same_bytes(tmp_path: Path) -> None:
    write_criteo_file(tmp_path / "plain.txt", 500)
    write_criteo_file(tmp_path / "one.txt.gz", 500)
    write_criteo_file(tmp_path / "two.txt.gz", 500)
    assert gzip.decompress((tmp_path / "one.txt.gz").read_bytes()) == (tmp_path / "plain.txt").read_bytes()
    assert (tmp_path / "one.txt.gz").read_bytes() == (tmp_path / "two.txt.gz").read_bytes()


def test_days_are_even_differ_and_go_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_criteo_days(tmp_path / "whole", 100, 3, seed=2)
    days = [(tmp_path / "whole" / f"day_{day}").read_bytes() for day in range(3)]
    assert [day.count(b"\n") for day in days] == [33, 33, 34]
    assert len({day.splitlines()[0] for day in days}) == 3
    made = []
    whole = criteo_text.write_criteo_file

    def one_day(path: Path, rows: int, *, seed: int, day: int) -> None:
        made.append(day)
        if made == [0, 1]:
            raise KeyboardInterrupt
        whole(path, rows, seed=seed, day=day)

    monkeypatch.setattr(criteo_text, "write_criteo_file", one_day)
    with pytest.raises(KeyboardInterrupt):
        write_criteo_days(tmp_path / "stopped", 100, 3, seed=2)
    assert not (tmp_path / "stopped").exists()
    write_criteo_days(tmp_path / "stopped", 100, 3, seed=2)
    assert made == [0, 1, 1, 2]
    assert [(tmp_path / "stopped" / f"day_{day}").read_bytes() for day in range(3)] == days


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("mine")
    with pytest.raises(DataError, match="already exists; nothing was written"):
        write_criteo_file(tmp_path / "train.txt", 10)
    with pytest.raises(DataError, match="already exists; nothing was written"):
        write_criteo_days(tmp_path, 10, 2)
    with pytest.raises(DataError, match="each day needs at least one row"):
        write_criteo_days(tmp_path / "days", 2, 3)
    assert (tmp_path / "train.txt").read_text() == "mine"
