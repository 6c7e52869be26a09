"""The DuckDB engine, which runs expressions in this process."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa

from ham_dist.data.engines.base import ROWS_PER_BATCH, Machine, literal
from ham_dist.errors import DataError


class DuckDB:
    """An in-memory DuckDB database."""

    long_queries = False

    def __init__(self, machine: Machine, spill: Path) -> None:
        options: dict[str, Any] = {
            "memory_limit": f"{machine.engine_memory // 1000}KB",
            "preserve_insertion_order": True,
            "temp_directory": str(spill),
        }
        if machine.threads is not None:
            options["threads"] = machine.threads
        self._connection = ibis.duckdb.connect(**options)
        # DuckDB's progress bar would mix with the output of commands on standard output.
        self._connection.raw_sql("SET enable_progress_bar = false")
        self._memory, self._spill = machine.memory, spill
        self._tables = 0

    def __enter__(self) -> "DuckDB":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.disconnect()

    @property
    def versions(self) -> dict[str, str]:
        return {"duckdb": duckdb.__version__, "ibis": ibis.__version__}

    def keep(self, expression: ibis.Table) -> ibis.Table:
        self._tables += 1
        try:
            return self._connection.create_table(f"kept_{self._tables}", expression, temp=True)
        except duckdb.Error as error:
            raise self._user_error(error) from error

    def show_arrow(self, name: str, table: pa.Table) -> ibis.Table:
        self._connection.con.register(name, table)
        return self._connection.table(name)

    def read_parquet(self, paths: Sequence[Path]) -> ibis.Table:
        try:
            return self._connection.read_parquet([literal(path) for path in paths])
        except duckdb.Error as error:
            raise DataError(f"{paths[0]}: is not a readable Parquet file ({_first_line(error)})") from None

    def batches(self, expression: ibis.Table) -> Iterator[pa.RecordBatch]:
        # Ibis's own to_pyarrow_batches calls fetch_record_batch, which DuckDB deprecates with a warning.
        try:
            yield from self._connection.raw_sql(self._connection.compile(expression)).to_arrow_reader(
                ROWS_PER_BATCH
            )
        except duckdb.Error as error:
            raise self._user_error(error) from error

    def show(self, name: str, expression: ibis.Table) -> ibis.Table:
        return self._connection.create_view(name, expression, overwrite=True)

    def query(self, expression: ibis.Table) -> Callable[[], pa.Table]:
        sql = self._connection.compile(expression)

        def fetch() -> pa.Table:
            try:
                return self._connection.raw_sql(sql).to_arrow_table()
            except duckdb.Error as error:
                raise self._user_error(error) from error

        return fetch

    def _user_error(self, error: duckdb.Error) -> Exception:
        """DataError for an error that the user can fix; otherwise `error`, which is a bug."""
        if isinstance(error, duckdb.OutOfMemoryException):
            return DataError(
                f"--memory {self._memory / 1e9:g}GB is not enough ({_first_line(error)})\n"
                "  Give more memory, or --spill on a bigger disk."
            )
        if isinstance(error, duckdb.IOException):
            return DataError(
                f"{self._spill}: cannot be used ({_first_line(error)})\n"
                "  Free space there, or give --spill on another disk."
            )
        return error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
