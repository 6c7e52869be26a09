"""Text files of any size, a block of whole lines at a time, with the number of the first line."""

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
# What is kept of a line that does not fit into a block.
_HEAD_BYTES = 1 << 10


@dataclass(frozen=True)
class Position:
    """A place between two lines of a file: bytes and lines before it, uncompressed."""

    offset: int = 0
    lines: int = 0


@dataclass(frozen=True)
class Block:
    """Neighbouring lines of a file.

    data:  UTF-8 (as far as it is text), every line with its line end, which is always one line feed; without a mark at the beginning of the file.
    start, end: where they lie in the file.
    share: of the file's bytes on the disk, about how many lie before `end`; of a compressed file rather fewer, as these are read ahead.
    cut:   whether it is one line, too long for a block, of which only the beginning is here.
    """

    data: bytes
    start: Position
    end: Position
    share: float
    cut: bool = False


def read_blocks(
    path: Path, format: Format, start: Position | None = None, block_bytes: int | None = None
) -> Iterator[Block]:
    """The lines of a text file, plain or compressed (by the ending of its name), from `start` on; a block is about `block_bytes` (or BLOCK_BYTES).

    raises: DataError if it is compressed and cut short or damaged, or is not of the 2-byte encoding that the format names.
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
    """How many lines a file has, blank ones counted."""
    return sum(block.end.lines - block.start.lines for block in read_blocks(path, format))


def text_size(path: Path, format: Format) -> tuple[float, float]:
    """Bytes of a file's text, estimated from its beginning, and the mean bytes of a line there."""
    with path.open("rb") as raw, _opened(path, raw, format) as stream:
        text = stream.read(1 << 20)
        share = 1.0 if len(text) < 1 << 20 else len(text) / raw.tell()
    size = path.stat().st_size * share if len(text) == 1 << 20 else len(text)
    return size, len(text) / max(text.count(b"\n"), 1)


class _Stream:
    """The text of one file as UTF-8 (or bytes that are no text), with its mistakes as ours."""

    def __init__(self, path: Path, raw: IO[bytes], file: Any, decode: Any = None) -> None:
        self._path, self._raw, self._file, self._decode = path, raw, file, decode
        self._waiting = b""
        self._size = max(os.fstat(raw.fileno()).st_size, 1)
        self.share = 0.0
        """See Block."""

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """About `size` bytes, and none only at the end."""
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
                f"{self._path}: is not text in the recipe's encoding ({error.reason})\n  Check format.encoding."
            ) from None
        # Bytes that are half a letter, or the mark of the order of bytes, give no text yet.
        return text.encode("utf-8", "surrogatepass") if text or not chunk else self.read(size)

    def skip(self, offset: int) -> None:
        """Go on at byte `offset` of the text."""
        if self._decode is None and self._path.suffix not in COMPRESSED:
            self._file.seek(offset)
            return
        while offset > 0 and (chunk := self.read(min(offset, BLOCK_BYTES))):
            # Letters of utf-16 may take more bytes here than in the file.
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
    # Bytes of utf-16 cannot be cut at a byte that looks like a line end; those of the other two can.
    decode = codecs.getincrementaldecoder("utf-16")().decode if format.encoding == "utf-16" else None
    return _Stream(path, raw, file, decode)


def _rest_of_line(stream: _Stream, text: bytes, block_bytes: int) -> tuple[bytes, bytes, int, bool]:
    """Of a line that began with `text` and does not end in it: its beginning, what follows it, its bytes, and whether it ended."""
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
