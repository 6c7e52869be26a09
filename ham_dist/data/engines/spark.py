"""The Spark engine, which runs the same expressions on this machine or on a cluster.

The workers of a cluster must have access to the output folder.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from ham_dist.data.engines.base import ROWS_PER_BATCH, Machine, literal
from ham_dist.errors import DataError

# Partitions of a group-by per core.
_PARTITIONS_PER_CORE = 2
# Wildcard characters in Hadoop paths.
_SIGNS = "\\*?[]{}"
_FIX = (
    "  If memory or disk is full, give more: --memory, --spill on another disk, "
    "or --master with a larger cluster."
)

P = ParamSpec("P")
T = TypeVar("T")


def with_data_errors(call: Callable[P, T]) -> Callable[P, T]:
    """Wraps `call` so that errors of Spark are raised as DataError.

    An invalid query is a bug in this package, so its error is raised unchanged.
    """

    @wraps(call)
    def called(*args: P.args, **options: P.kwargs) -> T:
        from py4j.protocol import Py4JError
        from pyspark.errors import AnalysisException, ParseException, PySparkException

        try:
            return call(*args, **options)
        except (AnalysisException, ParseException):
            raise
        except (Py4JError, PySparkException, ConnectionError) as error:
            raise DataError(f"--engine spark: {_reason(error)}\n{_FIX}") from error

    return called


def _reason(error: Exception) -> str:
    """The line of Spark's message with the root cause: the last "Caused by", or else the first line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    return causes[-1] if causes else lines[0]


class Spark:
    """A Spark session."""

    long_queries = True

    def __init__(self, machine: Machine, spill: Path) -> None:
        self._spill = spill
        self._session = _session(machine, spill)
        self._connection = ibis.pyspark.connect(self._session)
        self._tables = 0

    def __enter__(self) -> "Spark":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.stop()

    @property
    def versions(self) -> dict[str, str]:
        return {"spark": self._session.version, "ibis": ibis.__version__}

    @with_data_errors
    def keep(self, expression: ibis.Table) -> ibis.Table:
        name = self._name("kept")
        self._frame(expression).cache().createOrReplaceTempView(name)
        return self._connection.table(name)

    @with_data_errors
    def read_parquet(self, paths: Sequence[Path]) -> ibis.Table:
        name = self._name("files")
        self._session.read.parquet(
            *(literal(path.absolute(), signs=_SIGNS, quoted="\\{}") for path in paths)
        ).createOrReplaceTempView(name)
        return self._connection.table(name)

    def batches(self, expression: ibis.Table) -> Iterator[pa.RecordBatch]:
        # By way of files, not the driver's memory. The names of the files have the order of the result.
        folder = self._spill / self._name("result")
        with_data_errors(self._frame(expression).write.parquet)(folder.absolute().as_uri())
        for path in sorted(folder.glob("part-*.parquet")):
            yield from pq.ParquetFile(path).iter_batches(ROWS_PER_BATCH)
        shutil.rmtree(folder)

    def show(self, name: str, expression: ibis.Table) -> ibis.Table:
        self._frame(expression).createOrReplaceTempView(name)
        return self._connection.table(name)

    @with_data_errors
    def show_arrow(self, name: str, table: pa.Table) -> ibis.Table:
        self._session.createDataFrame(table).createOrReplaceTempView(name)
        return self._connection.table(name)

    def query(self, expression: ibis.Table) -> Callable[[], pa.Table]:
        sql = self._connection.compile(expression)
        return with_data_errors(lambda: self._session.sql(sql).toArrow())

    def _name(self, kind: str) -> str:
        self._tables += 1
        return f"{kind}_{self._tables}"

    def _frame(self, expression: ibis.Table) -> Any:
        return self._session.sql(self._connection.compile(expression))


def _session(machine: Machine, spill: Path) -> Any:
    """Raises DataError if pyspark or Java is missing, or the master does not respond."""
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise DataError(
            "--engine spark: pyspark is not installed\n"
            "  Run pip install 'ham-dist[spark]', and install Java 17."
        ) from None
    if shutil.which("java") is None:
        raise DataError("--engine spark: Java was not found\n  Install Java 17, and put `java` on the PATH.")
    master = machine.master or f"local[{machine.threads or '*'}]"
    builder = SparkSession.builder.master(master).appName("ham-dist prepare")
    for name, value in {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": f"{machine.engine_memory >> 20}m",
        "spark.local.dir": str(spill.absolute()),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.caseSensitive": "true",
        "spark.sql.adaptive.enabled": "true",
    }.items():
        builder = builder.config(name, value)
    if machine.master is None:
        builder = builder.config("spark.driver.host", "127.0.0.1").config(
            "spark.driver.bindAddress", "127.0.0.1"
        )
    try:
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
        session.conf.set(
            "spark.sql.shuffle.partitions",
            str(_PARTITIONS_PER_CORE * session.sparkContext.defaultParallelism),
        )
    except (PySparkException, RuntimeError) as error:
        raise DataError(f"--engine spark: {master}: {str(error).strip().splitlines()[0]}") from None
    return session
