"""`ham-dist score`: output, warnings and advice."""

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ham_dist.cli import app
from ham_dist.export import scorer
from ham_dist.export.manifest import UnknownShares
from tests.support.raw_bundle import RECIPE, write_raw_bundle

runner = CliRunner()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    shares = UnknownShares(split="validation", rows=100, shares={"user": 0.3, "genres": 0.05, "age": 0.0})
    return write_raw_bundle(
        tmp_path, {**RECIPE, "format": {"separator": ",", "header": True}}, unknown=shares
    )


def test_ids_shares_and_a_warning(tmp_path: Path, bundle: Path) -> None:
    """The genres are written with another separator than in training."""
    (tmp_path / "new.log").write_text("id,user,genres,age\n7,u1,g1 g2,a1\n8,u2,g1 g3,a2\n9,u0,g2,a2\n")
    out = tmp_path / "out.csv"
    result = runner.invoke(
        app, ["score", str(bundle), str(tmp_path / "new.log"), "--out", str(out), "--id", "id"]
    )
    assert result.exit_code == 0, result.output
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["7", "8", "9"]
    assert all(0 < float(row["probability"]) < 1 for row in rows)
    assert result.stdout.splitlines()[0] == f"3 probabilities in {out}"
    cells = [line.split() for line in result.stdout.splitlines()]
    assert ["user", "3", "1", "33.3%", "30.0%"] in cells
    assert ["genres", "3", "2", "66.7%", "5.0%"] in cells
    assert ["age", "3", "0", "0.0%", "0.0%"] in cells
    assert "warning: field genres: 2 of 3 values (66.7%) are unknown" in result.stderr
    assert result.stderr.count("warning") == 1
    assert "separators, quotes" in result.stderr


def test_the_option_is_named_as_it_is_written(tmp_path: Path, bundle: Path) -> None:
    ids = pa.table({"user": [1], "gone": [0], "genres": [[1]], "age": [1]})
    pq.write_table(ids, tmp_path / "in.parquet")
    result = runner.invoke(
        app, ["score", str(bundle), str(tmp_path / "in.parquet"), "--out", str(tmp_path / "o.txt")]
    )
    assert result.exit_code == 2
    assert "Give --values ids or --values raw" in result.stderr


def test_out_of_memory_gives_advice_for_scoring(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(scorer, "open_bundle", fail)
    result = runner.invoke(
        app, ["score", str(bundle), str(tmp_path / "in"), "--out", str(tmp_path / "o.txt")]
    )
    assert result.exit_code == 2
    assert result.stderr == (
        "ham-dist: out of memory\n"
        "  The columns of 65,536 records and the dense part must fit in memory; the tables need not. "
        "Use a machine with more memory, or export fewer columns\n"
    )
