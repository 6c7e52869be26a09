"""The engine protocol, and the limits of memory and threads. `open.py` opens the engine."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import ibis
import pyarrow as pa

from ham_dist.errors import DataError

ROWS_PER_BATCH = 65_536
# Share of the memory limit that DuckDB gets: DuckDB counts only its own buffers, and Python, pyarrow and the
# rows in transfer need memory too.
_ENGINE_SHARE = 0.5
# Python, pyarrow and one block in transfer take about half of this.
LEAST_MEMORY = 10**9

_MOST_MEMORY = 10**15
"""Maximum of --memory in bytes. DuckDB's limit is 2^64; this is far above any machine."""

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


@dataclass(frozen=True)
class Machine:
    """Limits of memory and threads, and the engine. None of these changes the output."""

    memory: int = 4 * 10**9
    """Memory limit of the whole process in bytes."""
    threads: int | None = None
    """Worker threads; None for all cores."""
    spill: Path | None = None
    """Folder to spill to when memory is full; None for a folder next to the output."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    master: str | None = None
    """Address of Spark's master; None for this machine."""

    def __post_init__(self) -> None:
        if self.memory < LEAST_MEMORY:
            raise DataError(
                f"--memory: {self.memory / 1e9:g}GB is too little\n  Give at least {LEAST_MEMORY / 1e9:g}GB."
            )
        if self.master is not None and self.engine != "spark":
            raise DataError(
                f"--master {self.master}: can only be used with Spark\n"
                "  Add --engine spark, or remove --master."
            )

    @property
    def engine_memory(self) -> int:
        """Memory limit of the engine in bytes."""
        return int(self.memory * _ENGINE_SHARE)


class Engine(Protocol):
    """The operations of an engine that preparing needs."""

    long_queries: bool
    """True if queries start so slowly that each should process as many rows as possible."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the programs that determine the output, the engine first."""

    def keep(self, expression: ibis.Table) -> ibis.Table:
        """Computes the rows of `expression` once and returns them as a table of the engine."""

    def read_parquet(self, paths: Sequence[Path]) -> ibis.Table:
        """Returns the rows of Parquet files that have the same schema.

        Raises:
            DataError: A file is not a Parquet file.
        """

    def batches(self, expression: ibis.Table) -> Iterator[pa.RecordBatch]:
        """Yields the rows of `expression` in batches, so that they need not fit in memory."""

    def show(self, name: str, expression: ibis.Table) -> ibis.Table:
        """Creates or replaces the view `name` of the rows of `expression`."""

    def show_arrow(self, name: str, table: pa.Table) -> ibis.Table:
        """Creates or replaces the view `name` of a table in memory."""

    def query(self, expression: ibis.Table) -> Callable[[], pa.Table]:
        """Compiles `expression` to a query that can be run many times; compiling can take longer than
        running.

        Returns:
            A function that runs the query on the current content of its views and returns all rows, which
            must fit in memory.
        """


def parse_size(text: str) -> int:
    """Converts a size such as 4GB, 1.5 GiB or 800MB to bytes.

    Raises:
        DataError: The text is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Z]+)", text.strip().upper())
    if match is None or match[2] not in _UNITS:
        raise DataError(f"--memory {text[:40]}: not a size\n  Write it as 4GB, 1.5GiB or 800MB.")
    size = float(match[1]) * _UNITS[match[2]]
    if size > _MOST_MEMORY:
        raise DataError(
            f"--memory {text[:40]}: is more than any machine has\n"
            f"  Give at most {_MOST_MEMORY // 10**12:,}TB."
        )
    return int(size)


def literal(path: Path, signs: str = "*?[", quoted: str = "[{}]") -> str:
    """Escapes a path for a reader that treats `signs` as wildcards.

    Args:
        path: The path.
        signs: Characters with a special meaning (default: DuckDB's).
        quoted: Format string that escapes one of them.
    """
    return "".join(quoted.format(letter) if letter in signs else letter for letter in str(path))
