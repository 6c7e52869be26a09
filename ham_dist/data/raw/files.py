"""The raw files that a recipe names: found, stamped, and read a block at a time."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from ham_dist.data.encode.expressions import ROW
from ham_dist.data.engines.base import Engine
from ham_dist.data.format.manifest import RawFile
from ham_dist.data.raw.blocks import COMPRESSED, Block, Position, read_blocks
from ham_dist.data.raw.parse import Rejected, parse
from ham_dist.data.recipe.fields import Format, Join
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError
from ham_dist.io.hashing import sha256_of_stream
from ham_dist.io.paths import is_local

# Rejected lines that a message shows.
SHOWN = 5
_SHOWN_LETTERS = 80
# A file is given up before its end where it has so many times more bad lines than it may have, as far as its length can be guessed.
_EARLY = 10


def find_raw(recipe: Recipe, raw: str | Path) -> dict[str, Path]:
    """The path of each file that `recipe` names, plain or compressed, in the folder `raw`; the samples first.

    raises: DataError that names every file that is not there; or if the folder is not on this machine, as raw files are read twice and more.
    """
    names = [*recipe.samples.files, *(join.file for join in recipe.joins)]
    if not is_local(raw):
        mend = f"Copy {', '.join(names)} from there to one, and give that folder."
        raise DataError(f"{raw}: raw files are read from a folder of this machine\n  {mend}")
    raw = Path(raw)
    if not raw.is_dir():
        what = "is a file" if raw.exists() else "no such folder"
        raise DataError(
            f"{raw}: {what}; give the folder that holds {', '.join(names)}\n  {recipe.name} comes from {recipe.source}"
        )
    found = {}
    for name in names:
        candidates = [raw / f"{name}{suffix}" for suffix in ("", *COMPRESSED)]
        found[name] = next((path for path in candidates if path.is_file()), None)
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise DataError(
            f"{raw}: lacks {', '.join(missing)} (plain or with .gz behind the name)\n  {recipe.name} comes from {recipe.source}"
        )
    return {name: path for name, path in found.items() if path is not None}


def stamp(path: Path) -> RawFile:
    """Name, size and sha256 of a raw file."""
    try:
        with path.open("rb") as file:
            return RawFile(
                file=path.name,
                bytes=path.stat().st_size,
                sha256=sha256_of_stream(file),
            )
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def sample_blocks(
    path: Path, columns: Sequence[str], format: Format, start: Position | None = None
) -> Iterator[Block]:
    """The lines of a raw file below its header, from `start` on.

    raises: DataError if the header does not name `columns`.
    """
    blocks = read_blocks(path, format, start)
    if format.header and (start is None or start.lines == 0):
        first = next(blocks, None)
        head, _, rest = (b"", b"", b"") if first is None else first.data.partition(b"\n")
        found = header_names(head, format)
        if found != list(columns):
            raise DataError(
                f"{path}: line 1: names the columns {', '.join(found)}; the recipe says {', '.join(columns)}"
            )
        if first is not None and rest:
            yield replace(first, data=rest, start=Position(first.start.offset, 1))
    yield from blocks


def header_names(head: bytes, format: Format) -> list[str]:
    """The columns that a header names."""
    text = head.decode("utf-8", "backslashreplace")
    if format.quote:
        with suppress(csv.Error):  # a name longer than csv takes
            return next(csv.reader([text], delimiter=format.separator, quotechar=format.quote), [""])
    return text.split(format.separator)


@dataclass
class Rejections:
    """The bad lines of one file so far. Told of each block in order."""

    path: Path
    allowed: float
    """The share of lines that may be bad."""
    lines: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)
    kept: list[Rejected] = field(default_factory=list)

    def add(self, lines: int, reasons: Mapping[str, int], worst: Sequence[Rejected]) -> None:
        """Count a block of `lines` lines: how many are bad for which reason, and the first of them."""
        self.lines += lines
        self.counts.update(reasons)
        self.shown += [described(self.path, one) for one in worst[: SHOWN - len(self.shown)]]

    def check(self) -> None:
        """raises: DataError if there are too many, now that the whole file is read."""
        if self.counts.total() > self.allowed * self.lines:
            self._refuse(whole=True)

    def check_early(self, share_read: float) -> None:
        """raises: DataError if there are so many that there is no use in reading on; about `share_read` of the file's bytes are read.

        How many lines there will be is a guess, since other parts of a file may have shorter lines or be packed more densely; hence _EARLY.
        """
        if share_read < 1 and self.counts.total() * share_read > _EARLY * self.allowed * self.lines:
            self._refuse(whole=False)

    def _refuse(self, whole: bool) -> NoReturn:
        bad, text = self.counts.total(), self.shown[:SHOWN]
        if bad > len(text):
            more, least = bad - len(text), "" if whole else "at least "
            text.append(f"{self.path}: and {least}{more:,} more such line{'s' if more > 1 else ''}")
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.counts.most_common())
        text.append(
            f"  {bad:,} of {self.lines:,} lines are rejected ({reasons}); max_rejected = {self.allowed:g} allows fewer."
        )
        text.append(
            "  Mend or delete these lines, and check that it is the file that the recipe means; or raise max_rejected."
        )
        raise DataError("\n".join(text))


def described(path: Path, one: Rejected) -> str:
    """File, line, reason and beginning of a bad line."""
    text = one.text
    return f"{path}: line {one.line}: {one.detail}, in {text[:_SHOWN_LETTERS]!r}{'...' if len(text) > _SHOWN_LETTERS else ''}"


def read_side(
    engine: Engine,
    path: Path,
    join: Join,
    wanted: Sequence[str],
    format: Format,
    store: Path,
    rejections: Rejections,
) -> ibis.Table:
    """A side file: its columns `wanted` as strings, through the Parquet file `store`; bad lines, which are few, go to `rejections.kept`.

    raises: DataError with file and line if a key is there twice, or too much cannot be read.
    """
    schema = pa.schema([(name, pa.string()) for name in wanted] + [(ROW, pa.int64())])
    with pq.ParquetWriter(store, schema) as writer:
        for block in sample_blocks(path, join.columns, format):
            rows = parse(block, join.columns, dict.fromkeys(wanted, "string"), format)
            rejections.add(len(rows.lines) + len(rows.rejected), rows.reasons(), rows.rejected)
            rejections.kept += rows.rejected
            writer.write_table(rows.table.append_column(ROW, pa.array(rows.lines)).cast(schema))
    rejections.check()
    side = engine.read_parquet([store])
    refuse_repeated(engine, side, join.key, path)
    return side.drop(ROW)


def refuse_repeated(engine: Engine, side: ibis.Table, key: str, path: Path) -> None:
    """Raises DataError with both lines if a key of a side file occurs twice: it would double its samples."""
    counts = (
        side.filter(side[key].notnull())
        .group_by(key)
        .aggregate(count=lambda t: t.count(), first=lambda t: t[ROW].min(), last=lambda t: t[ROW].max())
    )
    rows = engine.query(counts.filter(counts["count"] > 1).order_by("first").limit(1))().to_pylist()
    if rows:
        row = rows[0]
        where = f"{row['first'] + 1:,} and {row['last'] + 1:,}"
        raise DataError(
            f"{path}: {key} {row[key]!r} is there {row['count']} times (lines {where})\n  Keep one line a {key}."
        )
