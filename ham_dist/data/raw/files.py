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
from ham_dist.data.raw.parse import RejectedLine, parse
from ham_dist.data.recipe.fields import Format, Join
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError
from ham_dist.io.hashing import sha256_of_stream
from ham_dist.io.paths import is_local
from ham_dist.io.printable import printable, shown

# Rejected lines that a message shows.
SHOWN = 5
_SHOWN_LETTERS = 80
_SHOWN_NAMES = 50
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


def name_in(raw: str | Path, path: Path) -> str:
    """The name of a raw file for messages and manifests: its path from the raw folder, so that no two share one."""
    return path.relative_to(raw).as_posix()


FileState = list[int]
"""Device, inode, size and times of a file (the last change of content, the last change of anything), in nanoseconds."""


def state_of(path: Path) -> FileState:
    """The state of a file; it differs from before where the file was written to or replaced.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def stamp(path: Path, name: str) -> RawFile:
    """The manifest's entry of a raw file, called `name` there.

    Raises:
        DataError: The file cannot be read, or changes meanwhile.
    """
    before = state_of(path)
    try:
        with path.open("rb") as file:
            entry = RawFile(file=name, bytes=before[2], sha256=sha256_of_stream(file))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    refuse_changed(path, before, entry)
    return entry


def refuse_changed(path: Path, before: FileState, entry: RawFile | None = None) -> None:
    """Raises DataError if a file is not in the state that it had before it was read.

    Args:
        entry: Of the content before: where only rights or names changed since, the content decides.
    """
    if (after := state_of(path)) == before:
        return
    if entry is not None and after[:4] == before[:4]:
        with path.open("rb") as file:
            if sha256_of_stream(file) == entry.sha256 and state_of(path)[:4] == before[:4]:
                return
    raise DataError(
        f"{path}: changed while it was read; expected the same bytes from beginning to end\n"
        "  Wait until nothing writes to it, and give the same command again."
    )


# First bytes of files that are no text, what they are, and the ending of the name by which they are read.
_BINARY = {
    b"PAR1": ("a Parquet file", None),
    b"Obj\x01": ("an Avro file", None),
    b"ARROW1\0\0": ("an Arrow file", None),
    b"PK\x03\x04": ("a zip file", None),
    b"\x1f\x8b": ("a gzip file", ".gz"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", ".zst"),
}


def refuse_binary(path: Path) -> None:
    """Raises DataError if a file is of a known binary format: raw files are text, plain or compressed (by the end of the name)."""
    if path.suffix in COMPRESSED:
        return
    with path.open("rb") as file:
        head = file.read(8)
    for first, (kind, ending) in _BINARY.items():
        if head.startswith(first):
            way_out = (
                f"Let its name end in {ending}"
                if ending
                else "Write it as text, such as CSV, and name that file in the recipe"
            )
            raise DataError(f"{path}: is {kind}; expected text, plain or as .gz, .bz2 or .zst\n  {way_out}.")


def sample_blocks(
    path: Path, columns: Sequence[str], format: Format, start: Position | None = None
) -> Iterator[Block]:
    """The lines of a raw file below its header, from `start` on.

    Raises:
        DataError: The file is of a binary format, or its header does not name `columns`.
    """
    refuse_binary(path)
    blocks = read_blocks(path, format, start)
    if format.header and (start is None or start.lines == 0):
        first = next(blocks, None)
        if first is None:
            raise DataError(
                f"{path}: is empty; expected a header and samples\n  Check that it was written or downloaded whole."
            )
        head, _, rest = first.data.partition(b"\n")
        if format.header != "skip":
            _check_header(path, header_names(head, format), columns)
        if rest:
            yield replace(first, data=rest, start=Position(first.start.offset, 1))
    yield from blocks


def _check_header(path: Path, found: Sequence[str], columns: Sequence[str]) -> None:
    """Raises DataError if a header does not name `columns`, in their order."""
    if list(found) == list(columns):
        return
    repeated = [name for name, count in Counter(found).items() if count > 1]
    if repeated:
        text = f"names the column {shown(repeated[0])} {found.count(repeated[0])} times; expected each once"
    else:
        text = f"names the columns {_listed(found)}; the recipe has {_listed(columns)}"
    raise DataError(
        f"{path}: line 1: {text}\n"
        '  Give the names in the recipe\'s `columns`, or set format.header = "skip" and call columns as you like.'
    )


def _listed(names: Sequence[str]) -> str:
    """Names in a message: as many as a line holds."""
    text = ", ".join(printable(name[:_SHOWN_LETTERS]) or "''" for name in names[:_SHOWN_NAMES])
    return f"{text} and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else text


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
    kept: list[RejectedLine] = field(default_factory=list)
    first_line: bool = False
    """True where line 1 is bad."""

    def add(self, lines: int, reasons: Mapping[str, int], worst: Sequence[RejectedLine]) -> None:
        """Count a block of `lines` lines: how many are bad for which reason, and the first of them."""
        self.lines += lines
        self.counts.update(reasons)
        self.first_line = self.first_line or any(one.line == 1 for one in worst[:1])
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
        lines = f"{self.lines:,} line{'' if self.lines == 1 else 's'}"
        text.append(
            f"  {bad:,} of {lines} {'is' if bad == 1 else 'are'} rejected ({reasons}); max_rejected = {self.allowed:g} allows fewer."
        )
        if self.first_line:
            text.append(
                '  If line 1 names the columns, set format.header = true, or "skip" to leave it unread.'
            )
        text.append(
            "  Correct or delete these lines, and check that it is the file that the recipe means; or raise max_rejected."
        )
        raise DataError("\n".join(text))


def described(path: Path, one: RejectedLine) -> str:
    """File, line, reason and beginning of a bad line."""
    return f"{path}: line {one.line}: {one.detail}, in {shown(one.text, _SHOWN_LETTERS)}"


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
