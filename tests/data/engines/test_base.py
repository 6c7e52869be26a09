"""Errors of an engine: lack of memory, disk or workers is a DataError; an invalid query is a bug."""

from pathlib import Path

import duckdb
import ibis
import pytest

from ham_dist.data.engines.base import Machine, parse_size
from ham_dist.data.engines.duckdb import DuckDB
from ham_dist.errors import DataError


def distinct(rows: int) -> ibis.Table:
    """A query whose groups do not fit into 30 MB, from about a million rows on."""
    numbers = ibis.range(rows).unnest().name("number").as_table()
    return (
        numbers.mutate(text=numbers.number.cast("string").hexdigest("md5"))
        .group_by("text")
        .aggregate(count=lambda t: t.count())
    )


def small_duckdb(spill: Path) -> DuckDB:
    engine = DuckDB(Machine(threads=1), spill)
    engine._connection.raw_sql("SET memory_limit = '30MB'")
    return engine


def test_duckdb_that_cannot_spill(tmp_path: Path) -> None:
    (tmp_path / "spill").write_text("a file where the folder should be")
    for ask in (
        lambda engine: engine.keep(distinct(1_000_000)),
        lambda engine: list(engine.batches(distinct(1_000_000))),
    ):
        with small_duckdb(tmp_path / "spill") as engine, pytest.raises(DataError) as caught:
            ask(engine)
        assert str(caught.value).startswith(f"{tmp_path}/spill: cannot be used (IO Error: ")
        assert str(caught.value).endswith("Free space there, or give --spill on another disk.")


def test_duckdb_that_may_not_spill_enough(tmp_path: Path) -> None:
    with small_duckdb(tmp_path / "spill") as engine:
        engine._connection.raw_sql("SET max_temp_directory_size = '1MB'")
        with pytest.raises(
            DataError,
            match=r"--memory 4GB is not enough \(Out of Memory Error: .*\)\n  Give more memory, or --spill",
        ):
            engine.query(distinct(1_000_000))()


def test_a_query_that_duckdb_does_not_understand_is_a_bug_of_ours(tmp_path: Path) -> None:
    with small_duckdb(tmp_path / "spill") as engine, pytest.raises(duckdb.CatalogException):
        list(engine.batches(ibis.table({"a": "int64"}, name="nowhere")))


JAVA = """An error occurred while calling o61.parquet.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 1 in stage 4.0 failed 1 times
\tat org.apache.spark.scheduler.DAGScheduler.abortStage(DAGScheduler.scala:3122)
Caused by: java.io.IOException: No space left on device
\tat java.base/java.io.FileOutputStream.writeBytes(Native Method)"""


def test_the_root_cause_of_a_spark_error_is_one_line() -> None:
    pytest.importorskip("pyspark", reason="pyspark is not installed (pip install 'ham-dist[spark]')")
    from py4j.protocol import Py4JError, Py4JNetworkError
    from pyspark.errors import AnalysisException, PySparkException

    from ham_dist.data.engines.spark import with_data_errors

    def fail(error: Exception) -> None:
        raise error

    for error, reason in (
        (Py4JError(JAVA), "java.io.IOException: No space left on device"),
        (Py4JNetworkError("Answer from Java side is empty"), "Answer from Java side is empty"),
        (ConnectionRefusedError(111, "Connection refused"), "[Errno 111] Connection refused"),
        (PySparkException("worker lost\nwith its traceback"), "worker lost"),
    ):
        with pytest.raises(DataError) as caught:
            with_data_errors(fail)(error)
        assert str(caught.value).splitlines()[0] == f"--engine spark: {reason}"
        assert caught.value.__cause__ is error
    with pytest.raises(AnalysisException):
        with_data_errors(fail)(AnalysisException("no such column"))
    assert with_data_errors(len)("abc") == 3


@pytest.mark.parametrize(
    "size", ["99999999999999999999TB", "9" * 5000 + "GB", "1001TB", "GB", "-1GB", "nanGB"]
)
def test_a_size_that_no_machine_has_is_refused(size: str) -> None:
    with pytest.raises(DataError, match="--memory") as caught:
        parse_size(size)
    assert len(str(caught.value)) < 200
