"""Hashes of files and of JSON values."""

import hashlib
import json
from pathlib import Path
from typing import IO, Any

_BLOCK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return sha256_of_stream(file)


def sha256_of_stream(file: IO[bytes]) -> str:
    """sha256 of the rest of `file`, in hexadecimal."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def copy_and_hash(source: IO[bytes], target: IO[bytes]) -> tuple[int, str]:
    """Copies the rest of `source` to `target`.

    Returns:
        The number of bytes copied, and their sha256 in hexadecimal.
    """
    digest, size = hashlib.sha256(), 0
    while block := source.read(_BLOCK_BYTES):
        digest.update(block)
        size += len(block)
        target.write(block)
    return size, digest.hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """sha256 of `content`, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def md5_of(path: Path) -> str:
    """md5 of a file's content, in hexadecimal.

    Public data sets publish it; it is no protection against tampering.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def sha256_of_json(value: Any, *, ensure_ascii: bool = True) -> str:
    """sha256 of a JSON value in canonical form (sorted keys, no spaces), in hexadecimal.

    Raises:
        ValueError: The value holds NaN or infinity.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=ensure_ascii, allow_nan=False
    )
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
