"""Reads text files of any size in blocks of whole lines, with the line number of each block."""

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from ham_dist.data.recipe.fields import Format
from ham_dist.errors import DataError

BLOCK_BYTES = 16 << 20
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
# Bytes that are kept of a line that does not fit in a block.
_HEAD_BYTES = 1 << 10


@dataclass(frozen=True)
class Position:
    """A position between two lines of a file.

    Attributes:
        offset: Uncompressed bytes before it.
        lines: Lines before it.
    """

    offset: int = 0
    lines: int = 0


@dataclass(frozen=True)
class Block:
    """Consecutive lines of a file.

    Attributes:
        data: The lines as UTF-8 (bytes that are not valid text are kept as they are). Each line ends with one
            line feed. The byte order mark at the beginning of the file is left out.
        start: Position of the first line.
        end: Position after the last line.
        share: Approximate share, 0 to 1, of the file's bytes on disk that are before `end`. Of a compressed
            file it is rather too low, because the file is read ahead.
        cut: True if this is one line that is too long for a block; `data` has only its beginning.
    """

    data: bytes
    start: Position
    end: Position
    share: float
    cut: bool = False


def read_blocks(
    path: Path, format: Format, start: Position | None = None, block_bytes: int | None = None
) -> Iterator[Block]:
    """Yields the lines of a text file in blocks.

    Args:
        path: The file, plain or compressed (by the suffix of its name).
        format: Format of the text.
        start: Position of the first line to read (default: the beginning).
        block_bytes: Approximate size of a block (default: BLOCK_BYTES).
    Raises:
        DataError: The file cannot be read, is a truncated or damaged compressed file, or is not valid UTF-16
            where the format requires it.
    """
    position, block_bytes = start or Position(), block_bytes or BLOCK_BYTES
    with _open(path, format) as stream:
        stream.skip(position.offset)
        waiting = b""
        while True:
            chunk = stream.read(block_bytes)
            text = waiting + chunk
            end = text.rfind(b"\n") + 1 if chunk else len(text)
            if chunk and not end:
                if len(text) < block_bytes:
                    waiting = text
                    continue
                head, rest, length, ended = _rest_of_line(stream, text, block_bytes)
                after = Position(position.offset + length, position.lines + 1)
                yield Block(_without_mark(head, position, format), position, after, stream.share, cut=True)
                position, waiting = after, rest
                if ended:
                    continue
                return
            if end:
                data, waiting = text[:end], text[end:]
                after = Position(
                    position.offset + end, position.lines + data.count(b"\n") + (not data.endswith(b"\n"))
                )
                yield Block(
                    _without_mark(_normal(data, format), position, format), position, after, stream.share
                )
                position = after
            if not chunk:
                return


def count_lines(path: Path, format: Format) -> int:
    """Number of lines of a file, including empty ones."""
    return sum(block.end.lines - block.start.lines for block in read_blocks(path, format))


def text_size(path: Path, format: Format) -> tuple[float, float]:
    """Estimates the size of a file from its first MiB of text.

    Returns:
        Uncompressed bytes of the whole text, and mean bytes of a line.
    """
    with path.open("rb") as raw, _opened(path, raw, format) as stream:
        text = stream.read(1 << 20)
        share = 1.0 if len(text) < 1 << 20 else len(text) / raw.tell()
    size = path.stat().st_size * share if len(text) == 1 << 20 else len(text)
    return size, len(text) / max(text.count(b"\n"), 1)


class _Stream:
    """The text of one file as UTF-8 (bytes that are not valid text are kept). Raises DataError on read
    errors."""

    def __init__(self, path: Path, raw: IO[bytes], file: Any, decode: Any = None) -> None:
        self._path, self._raw, self._file, self._decode = path, raw, file, decode
        self._waiting = b""
        self._size = max(os.fstat(raw.fileno()).st_size, 1)
        self.share = 0.0
        """See `Block.share`."""

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """Reads about `size` bytes. Returns no bytes only at the end of the file."""
        if self._waiting:
            waiting, self._waiting = self._waiting, b""
            return waiting
        before = self._raw.tell()
        try:
            chunk: bytes = self._file.read(size)
        except OSError as error:
            kind = COMPRESSED.get(self._path.suffix)
            if kind is None:
                raise DataError(f"{self._path}: cannot be read ({error.strerror or error})") from None
            raise DataError(
                f"{self._path}: not a whole {kind} file ({error})\n  Download it again."
            ) from None
        self.share = (self._raw.tell() if self._file is self._raw else before) / self._size
        if self._decode is None:
            return chunk
        try:
            text: str = self._decode(chunk, not chunk)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self._path}: is not text in the recipe's encoding ({error.reason})\n"
                "  Check format.encoding."
            ) from None
        # Half a character, or a byte order mark, decodes to no text yet.
        return text.encode("utf-8", "surrogatepass") if text or not chunk else self.read(size)

    def skip(self, offset: int) -> None:
        """Skips the first `offset` bytes of the text."""
        if self._decode is None and self._path.suffix not in COMPRESSED:
            self._file.seek(offset)
            return
        while offset > 0 and (chunk := self.read(min(offset, BLOCK_BYTES))):
            # A block may be longer than was read: UTF-16 characters can take more bytes in UTF-8.
            self._waiting = chunk[offset:]
            offset -= len(chunk)


def _open(path: Path, format: Format) -> _Stream:
    return _opened(path, path.open("rb"), format)


def _opened(path: Path, raw: IO[bytes], format: Format) -> _Stream:
    kind = COMPRESSED.get(path.suffix)
    if kind is not None and not os.fstat(raw.fileno()).st_size:
        raw.close()
        raise DataError(f"{path}: not a whole {kind} file (it is empty)\n  Download it again.")
    file = raw if kind is None else pa.input_stream(pa.PythonFile(raw, mode="r"), compression=kind)
    # UTF-16 text must be decoded before it is split into lines: a byte that looks like a line end may be half
    # a character. UTF-8 and Latin-1 can be split as bytes.
    decode = codecs.getincrementaldecoder("utf-16")().decode if format.encoding == "utf-16" else None
    return _Stream(path, raw, file, decode)


def _rest_of_line(stream: _Stream, text: bytes, block_bytes: int) -> tuple[bytes, bytes, int, bool]:
    """Reads the rest of a line that begins with `text` and does not end there.

    Returns:
        Beginning of the line, the bytes read after it, its length in bytes, and True if it has a line end.
    """
    length = len(text)
    while chunk := stream.read(block_bytes):
        end = chunk.find(b"\n") + 1
        if end:
            return text[:_HEAD_BYTES] + b"\n", chunk[end:], length + end, True
        length += len(chunk)
    return text[:_HEAD_BYTES] + b"\n", b"", length, False


def _without_mark(data: bytes, start: Position, format: Format) -> bytes:
    return data.removeprefix(codecs.BOM_UTF8) if start.offset == 0 and format.encoding != "latin-1" else data


def _normal(data: bytes, format: Format) -> bytes:
    if format.encoding == "latin-1" and not data.isascii():
        data = data.decode("latin-1").encode()
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    return data if data.endswith(b"\n") else data + b"\n"
