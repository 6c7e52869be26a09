"""Spark as the engine: the same expressions on this machine's cores or on a cluster, whose workers must see the folder that is prepared."""

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

# Parts that a group-by is cut into for each core.
_PARTS_A_CORE = 2
# What Hadoop takes in a path for a pattern.
_SIGNS = "\\*?[]{}"
_MEND = "  If it is memory or disk, give more: --memory, --spill on another disk, or --master with a larger cluster."

P = ParamSpec("P")
T = TypeVar("T")


def told(call: Callable[P, T]) -> Callable[P, T]:
    """`call`, with what goes wrong in Spark as a DataError; a query that Spark does not understand is a bug of ours and stays one."""

    @wraps(call)
    def called(*args: P.args, **options: P.kwargs) -> T:
        from py4j.protocol import Py4JError
        from pyspark.errors import AnalysisException, ParseException, PySparkException

        try:
            return call(*args, **options)
        except (AnalysisException, ParseException):
            raise
        except (Py4JError, PySparkException, ConnectionError) as error:
            raise DataError(f"--engine spark: {_reason(error)}\n{_MEND}") from error

    return called


def _reason(error: Exception) -> str:
    """The line that says what Spark's workers died of: the deepest cause that Java names, and without one the first line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    return causes[-1] if causes else lines[0]


class Spark:
    """One Spark session."""

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

    @told
    def keep(self, expression: ibis.Table) -> ibis.Table:
        name = self._name("kept")
        self._frame(expression).cache().createOrReplaceTempView(name)
        return self._connection.table(name)

    @told
    def read_parquet(self, paths: Sequence[Path]) -> ibis.Table:
        name = self._name("files")
        self._session.read.parquet(
            *(literal(path.absolute(), signs=_SIGNS, quoted="\\{}") for path in paths)
        ).createOrReplaceTempView(name)
        return self._connection.table(name)

    def batches(self, expression: ibis.Table) -> Iterator[pa.RecordBatch]:
        # Through files, and not through the driver's memory: the parts of an ordered result are ordered by their names.
        folder = self._spill / self._name("result")
        told(self._frame(expression).write.parquet)(folder.absolute().as_uri())
        for path in sorted(folder.glob("part-*.parquet")):
            yield from pq.ParquetFile(path).iter_batches(ROWS_PER_BATCH)
        shutil.rmtree(folder)

    def show(self, name: str, expression: ibis.Table) -> ibis.Table:
        self._frame(expression).createOrReplaceTempView(name)
        return self._connection.table(name)

    @told
    def show_arrow(self, name: str, table: pa.Table) -> ibis.Table:
        self._session.createDataFrame(table).createOrReplaceTempView(name)
        return self._connection.table(name)

    def query(self, expression: ibis.Table) -> Callable[[], pa.Table]:
        sql = self._connection.compile(expression)
        return told(lambda: self._session.sql(sql).toArrow())

    def _name(self, kind: str) -> str:
        self._tables += 1
        return f"{kind}_{self._tables}"

    def _frame(self, expression: ibis.Table) -> Any:
        return self._session.sql(self._connection.compile(expression))


def _session(machine: Machine, spill: Path) -> Any:
    """raises: DataError if pyspark or Java is not there, or the master does not answer."""
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise DataError(
            "--engine spark: pyspark is not installed\n  pip install 'ham-dist[spark]', and Java 17."
        ) from None
    if shutil.which("java") is None:
        raise DataError("--engine spark: there is no Java\n  Install Java 17, and put `java` on the PATH.")
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
            "spark.sql.shuffle.partitions", str(_PARTS_A_CORE * session.sparkContext.defaultParallelism)
        )
    except (PySparkException, RuntimeError) as error:
        raise DataError(f"--engine spark: {master}: {str(error).strip().splitlines()[0]}") from None
    return session
