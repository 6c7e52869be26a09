"""Finds the raw files of a recipe, records their hashes, and reads them in blocks."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from ham_dist.data.format.manifest import RawFile
from ham_dist.data.raw.blocks import COMPRESSED, Block, Position, read_blocks
from ham_dist.data.raw.parse import RejectedLine
from ham_dist.data.recipe.fields import Format
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError
from ham_dist.io.hashing import sha256_of_stream
from ham_dist.io.paths import is_local
from ham_dist.io.printable import printable, shown

# Number of rejected lines shown in a message.
SHOWN = 5
_SHOWN_LETTERS = 80
_SHOWN_NAMES = 50
# Reading stops before the end of a file if it has this many times more bad lines than allowed, judged by the
# estimated number of its lines.
_EARLY = 10


def find_raw(recipe: Recipe, raw: str | Path) -> dict[str, Path]:
    """Finds the files of `recipe` in the folder `raw`.

    Returns:
        File name in the recipe -> path, plain or compressed; sample files first.
    Raises:
        DataError: Files are missing (the message lists all of them), or the folder is not on this machine:
            raw files are read more than once.
    """
    names = [*recipe.samples.files, *(join.file for join in recipe.joins)]
    if not is_local(raw):
        fix = f"Copy {', '.join(names)} to a local folder, and give that folder."
        raise DataError(f"{raw}: is a remote location; expected a folder on this machine\n  {fix}")
    raw = Path(raw)
    if not raw.is_dir():
        what = "is a file" if raw.exists() else "no such folder"
        raise DataError(
            f"{raw}: {what}; give the folder that holds {', '.join(names)}\n"
            f"  {recipe.name} comes from {recipe.source}"
        )
    found = {}
    for name in names:
        candidates = [raw / f"{name}{suffix}" for suffix in ("", *COMPRESSED)]
        found[name] = next((path for path in candidates if path.is_file()), None)
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise DataError(
            f"{raw}: lacks {', '.join(missing)} (plain or with .gz behind the name)\n"
            f"  {recipe.name} comes from {recipe.source}"
        )
    return {name: path for name, path in found.items() if path is not None}


def name_in(raw: str | Path, path: Path) -> str:
    """Name of a raw file in messages and manifests: its path relative to the raw folder, so that names are
    unique."""
    return path.relative_to(raw).as_posix()


FileState = list[int]
"""Device, inode, size in bytes, mtime and ctime of a file; both times in nanoseconds."""


def state_of(path: Path) -> FileState:
    """Returns the state of a file. It changes if the file is written to or replaced.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def stamp(path: Path, name: str) -> RawFile:
    """Returns the manifest's entry of a raw file.

    Args:
        path: The file.
        name: Its name in the manifest.
    Raises:
        DataError: The file cannot be read, or changed while it was read.
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
    """Raises DataError if a file changed while it was read.

    Args:
        path: The file.
        before: Its state before it was read.
        entry: Its hash at that time. If only permissions or names changed since (ctime), the hash decides.
    """
    if (after := state_of(path)) == before:
        return
    if entry is not None and after[:4] == before[:4]:
        with path.open("rb") as file:
            if sha256_of_stream(file) == entry.sha256 and state_of(path)[:4] == before[:4]:
                return
    raise DataError(
        f"{path}: changed while it was read; expected the same bytes from beginning to end\n"
        "  Wait until no program writes to it, and run the same command again."
    )


# First bytes of binary formats -> name of the format, and the suffix that makes it readable (None: cannot be
# read).
_BINARY = {
    b"PAR1": ("a Parquet file", None),
    b"Obj\x01": ("an Avro file", None),
    b"ARROW1\0\0": ("an Arrow file", None),
    b"PK\x03\x04": ("a zip file", None),
    b"\x1f\x8b": ("a gzip file", ".gz"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", ".zst"),
}


def refuse_binary(path: Path) -> None:
    """Raises DataError if a file has a known binary format. Raw files are text, plain or compressed (by their
    suffix)."""
    if path.suffix in COMPRESSED:
        return
    with path.open("rb") as file:
        head = file.read(8)
    for first, (kind, ending) in _BINARY.items():
        if head.startswith(first):
            fix = (
                f"Rename it so that its name ends in {ending}"
                if ending
                else "Write it as text, such as CSV, and name that file in the recipe"
            )
            raise DataError(f"{path}: is {kind}; expected text, plain or as .gz, .bz2 or .zst\n  {fix}.")


def sample_blocks(
    path: Path, columns: Sequence[str], format: Format, start: Position | None = None
) -> Iterator[Block]:
    """Yields the lines of a raw file without its header, from `start` on.

    Raises:
        DataError: The file is of a binary format, or its header does not name `columns`.
    """
    refuse_binary(path)
    blocks = read_blocks(path, format, start)
    if format.header and (start is None or start.lines == 0):
        first = next(blocks, None)
        if first is None:
            raise DataError(
                f"{path}: is empty; expected a header and samples\n"
                "  Check that it was written or downloaded completely."
            )
        head, _, rest = first.data.partition(b"\n")
        if format.header != "skip":
            _check_header(path, header_names(head, format), columns)
        if rest:
            yield replace(first, data=rest, start=Position(first.start.offset, 1))
    yield from blocks


def _check_header(path: Path, found: Sequence[str], columns: Sequence[str]) -> None:
    """Raises DataError if a header does not have the names `columns`, in that order."""
    if list(found) == list(columns):
        return
    repeated = [name for name, count in Counter(found).items() if count > 1]
    if repeated:
        text = f"names the column {shown(repeated[0])} {found.count(repeated[0])} times; expected each once"
    else:
        text = f"names the columns {_listed(found)}; the recipe has {_listed(columns)}"
    raise DataError(
        f"{path}: line 1: {text}\n"
        '  Use these names in the recipe\'s `columns`, or set format.header = "skip" to use other names.'
    )


def _listed(names: Sequence[str]) -> str:
    """The first names, for a message, and the number of the others."""
    text = ", ".join(printable(name[:_SHOWN_LETTERS]) or "''" for name in names[:_SHOWN_NAMES])
    return f"{text} and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else text


def header_names(head: bytes, format: Format) -> list[str]:
    """Column names in the header line `head`."""
    text = head.decode("utf-8", "backslashreplace")
    if format.quote:
        with suppress(csv.Error):  # a name longer than the csv module accepts
            return next(csv.reader([text], delimiter=format.separator, quotechar=format.quote), [""])
    return text.split(format.separator)


@dataclass
class Rejections:
    """Counts the rejected lines of one file. `add` is called for each block, in order."""

    path: Path
    allowed: float
    """Maximum share of rejected lines."""
    lines: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)
    kept: list[RejectedLine] = field(default_factory=list)
    first_line: bool = False
    """True if line 1 was rejected."""

    def add(self, lines: int, reasons: Mapping[str, int], worst: Sequence[RejectedLine]) -> None:
        """Counts one block.

        Args:
            lines: Number of lines in the block.
            reasons: Reason -> number of lines rejected for it.
            worst: The first rejected lines of the block.
        """
        self.lines += lines
        self.counts.update(reasons)
        self.first_line = self.first_line or any(one.line == 1 for one in worst[:1])
        self.shown += [described(self.path, one) for one in worst[: SHOWN - len(self.shown)]]

    def check(self) -> None:
        """Raises DataError if too many lines of the whole file are rejected."""
        if self.counts.total() > self.allowed * self.lines:
            self._refuse(whole=True)

    def check_early(self, share_read: float) -> None:
        """Raises DataError if so many lines are rejected that reading the rest of the file is pointless.

        The number of lines in the rest is only an estimate, because other parts of the file may have shorter
        lines or compress better; _EARLY is the safety factor for that.

        Args:
            share_read: Approximate share of the file's bytes read so far, 0 to 1.
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
            f"  {bad:,} of {lines} {'is' if bad == 1 else 'are'} rejected ({reasons}); "
            f"max_rejected = {self.allowed:g} allows fewer."
        )
        if self.first_line:
            text.append('  If line 1 names the columns, set format.header = true, or "skip" to ignore it.')
        text.append(
            "  Correct or delete these lines, and check that this is the right file for the recipe; "
            "or raise max_rejected."
        )
        raise DataError("\n".join(text))


def described(path: Path, one: RejectedLine) -> str:
    """Message for one rejected line: file, line number, reason, and beginning of the line."""
    return f"{path}: line {one.line}: {one.detail}, in {shown(one.text, _SHOWN_LETTERS)}"


def repeated_key(path: Path, column: str, key: str, count: int, first: int, last: int) -> DataError:
    """Returns the error of a side file in which a key appears more than once.

    Args:
        path: The side file.
        column: Name of the key's column.
        key: The key.
        count: How many times it appears.
        first: Its first line, from 0.
        last: Its last line, from 0.
    """
    return DataError(
        f"{path}: {column} {key!r} appears {count} times (lines {first + 1:,} and {last + 1:,})\n"
        f"  Keep one line per {column}."
    )
