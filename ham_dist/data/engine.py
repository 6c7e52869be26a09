"""DuckDB as the engine that runs the expressions: reading raw files with the line of every mistake, and keeping intermediate tables."""

import gzip
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa

from ham_dist.data.expressions import ROW
from ham_dist.data.recipe import Format
from ham_dist.errors import DataError

ROWS_PER_BATCH = 65_536
# ASCII's unit separator, which text does not hold: lines are then read whole.
_NO_SEPARATOR = "\x1f"
# Mistakes of one file that a message shows, and that DuckDB remembers.
_SHOWN, _REMEMBERED = 5, 1000


class DuckDB:
    """One DuckDB database in memory, which spills into the folder `spill` where it outgrows it."""

    def __init__(self, spill: Path | None = None, threads: int | None = None) -> None:
        options: dict[str, Any] = {} if threads is None else {"threads": threads}
        if spill is not None:
            options["temp_directory"] = str(spill)
        self._spill = spill
        self._connection = ibis.duckdb.connect(**options)
        self._tables = 0

    def __enter__(self) -> "DuckDB":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.disconnect()
        if self._spill is not None:
            shutil.rmtree(self._spill, ignore_errors=True)

    @property
    def versions(self) -> dict[str, str]:
        """Of the programs that decide what is written."""
        return {"duckdb": duckdb.__version__, "ibis": ibis.__version__}

    def keep(self, expression: ibis.Table) -> ibis.Table:
        """The rows of `expression`, worked out once."""
        self._tables += 1
        return self._connection.create_table(f"kept_{self._tables}", expression, temp=True)

    def batches(self, expression: ibis.Table) -> Iterator[pa.RecordBatch]:
        """The rows of `expression` piece by piece, so that they need not fit in memory."""
        # Ibis's own to_pyarrow_batches calls fetch_record_batch, which DuckDB deprecates with a warning.
        return iter(self._connection.raw_sql(self._connection.compile(expression)).to_arrow_reader(ROWS_PER_BATCH))

    def read_text(self, path: Path, columns: Mapping[str, str], format: Format) -> ibis.Table:
        """The lines of a text file without quoting: `columns` (name to type: string or float64) and ROW.

        An empty cell is null where text is wanted, and a mistake where a number is.
        raises: DataError with file, line and reason of the first bad lines.
        """
        if format.header:
            self._check_header(path, list(columns), format)
        numbers = [name for name, type in columns.items() if type != "string"]
        return self._read(
            path,
            delim=format.separator,
            quote="",
            escape="",
            header=format.header,
            encoding=format.encoding,
            auto_detect=False,
            columns={name: {"string": "VARCHAR", "float64": "DOUBLE"}[type] for name, type in columns.items()},
            **({"force_not_null": numbers} if numbers else {}),
        )

    def read_csv(self, path: Path) -> ibis.Table:
        """A comma-separated file with a header and the usual quoting: its columns as strings, and ROW."""
        return self._read(path, delim=",", quote='"', escape='"', header=True, all_varchar=True, encoding="utf-8")

    def read_parquet(self, path: Path) -> ibis.Table:
        """A Parquet file: its columns, and ROW."""
        try:
            return self._numbered(self._connection.read_parquet(_literal(path)))
        except duckdb.Error as error:
            raise DataError(f"{path}: not a Parquet file that can be read ({_first_line(error)})") from None

    def _read(self, path: Path, **options: Any) -> ibis.Table:
        _refuse_cut_short(path)
        rejects = f"rejects_{self._tables}"
        try:
            names = {"rejects_table": rejects, "rejects_scan": f"scans_{self._tables}"}
            table = self._numbered(self._scan(path, store_rejects=True, rejects_limit=_REMEMBERED, **names, **options))
        except duckdb.Error as error:
            raise DataError(f"{path}: cannot be read: {_first_line(error)}") from None
        self._refuse_rejected(path, self._connection.table(rejects))
        return table

    def _scan(self, path: Path, **options: Any) -> ibis.Table:
        """The lines of a text file, not read yet."""
        self._tables += 1
        compression = "gzip" if path.suffix == ".gz" else "none"
        return self._connection.read_csv(_literal(path), table_name=f"text_{self._tables}", compression=compression, **options)

    def _numbered(self, table: ibis.Table) -> ibis.Table:
        """`table` kept, and numbered: DuckDB keeps the order of the file whatever its threads, and numbers the rows of a kept table in it."""
        kept = self.keep(table)
        return kept.mutate(**{ROW: kept.rowid()})

    def _check_header(self, path: Path, wanted: list[str], format: Format) -> None:
        lines = self._scan(
            path, delim=_NO_SEPARATOR, quote="", escape="", header=False, encoding=format.encoding, auto_detect=False, columns={"line": "VARCHAR"}
        )
        first = lines.limit(1).to_pyarrow().to_pylist()
        found = first[0]["line"].split(format.separator) if first else []
        if found != wanted:
            raise DataError(f"{path}: line 1: names the columns {', '.join(found)}; the recipe says {', '.join(wanted)}")

    def _refuse_rejected(self, path: Path, rejects: ibis.Table) -> None:
        rows = rejects.to_pyarrow().to_pylist()
        if not rows:
            return
        # A short line is there once for each column that it lacks, and often once more because its number is not in its place: the first column that
        # it lacks says it best.
        rows.sort(key=lambda row: (row["error_type"] == "CAST", row["column_idx"] or 0))
        by_line: dict[int, dict[str, Any]] = {}
        for row in rows:
            by_line.setdefault(row["line"], row)
        lines = [f"{path}: line {line}: {_reason(by_line[line])}" for line in sorted(by_line)[:_SHOWN]]
        if len(by_line) > _SHOWN:
            more = len(by_line) - _SHOWN
            lines.append(f"{path}: and {'at least ' if len(rows) >= _REMEMBERED else ''}{more:,} more such line{'s' if more > 1 else ''}")
        raise DataError("\n".join(lines) + "\n  Mend or delete these lines, and check that it is the file that the recipe means.")


def _refuse_cut_short(path: Path) -> None:
    """DuckDB reads the part of a gzipped file that is there, without a word."""
    if path.suffix != ".gz":
        return
    try:
        with gzip.open(path) as text:
            while text.read(1 << 20):
                pass
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error})\n  Download it again.") from None


def _reason(row: dict[str, Any]) -> str:
    text = row["csv_line"].strip()
    line = f" in {text[:80]!r}{'...' if len(text) > 80 else ''}"
    wanted, _, found = row["error_message"].removeprefix("Expected Number of Columns: ").partition(" Found: ")
    match row["error_type"]:
        case "MISSING COLUMNS" | "TOO MANY COLUMNS":
            return f"{found} columns where {wanted} are wanted,{line}"
        case "CAST":
            return f"{row['column_name']} is not a number,{line}"
        case "INVALID ENCODING":
            return f"is not text in the recipe's encoding,{line}"
        case _:
            return f"{row['error_message'].strip()}{line}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _literal(path: Path) -> str:
    """DuckDB takes *, ? and [ in a path for a pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))
