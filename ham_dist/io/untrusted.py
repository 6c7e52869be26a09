"""Reads untrusted input: only regular files inside their folder, and JSON and TOML within limits."""

import json
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

JSON_BYTES = 1 << 26
"""Maximum size of a JSON file (64 MiB). Our largest, a manifest of 10^5 shards, has about 20 MB."""
TOML_BYTES = 1 << 20
"""Maximum size of a TOML file; a recipe with 1,000 fields has less than 100 kB."""
JSON_DEPTH = 100
"""Maximum nesting of JSON; ours is nested less than 10 deep."""
NAME_BYTES = 255
"""Maximum length of a file name in bytes (NAME_MAX of Linux)."""
NUMBER_DIGITS = 40
"""Maximum length of a number; int64 has 19 digits and float64 is written with 17 to 24 characters."""


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading.

    Raises:
        OSError: The file does not exist, cannot be read, or is a folder, a FIFO, a socket or a device (which
            could block or never end).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(0, f"is {_kind(mode)}, not a regular file", str(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def inside(folder: Path, name: str) -> Path:
    """The path of `name` in `folder`.

    Raises:
        ValueError: The path leads out of the folder, by `..`, an absolute path or a symbolic link.
    """
    path = folder / name
    try:
        if path.resolve().is_relative_to(folder.resolve()):
            return path
    except (OSError, RuntimeError):  # a symbolic link to itself; Python 3.13 raises OSError
        pass
    raise ValueError(f"{name!r} leads out of {folder}")


def relative_name(name: str) -> str:
    """Validates the name of a file that a manifest, a recipe or an archive lists, and returns it.

    Raises:
        ValueError: The name is absolute, begins with a drive letter, has an empty part, a part `.` or `..`, a
            control character or a backslash, or is too long for a file system.
    """
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or not name.isprintable() or "\\" in name or re.match("[A-Za-z]:", name):
        raise ValueError(f"{name[:80]!r} is not a relative path in this folder")
    if any(len(part.encode("utf-8", "surrogatepass")) > NAME_BYTES for part in parts) or len(name) > 4000:
        raise ValueError(f"{name[:80]!r}... is too long for a file name")
    return name


def read_json(path: Path, *, limit: int = JSON_BYTES, finite: bool = True) -> Any:
    """Reads the JSON value in a UTF-8 file.

    Args:
        path: A regular file.
        limit: Maximum size in bytes.
        finite: Refuse NaN and Infinity, which Python writes although they are not JSON.
    Raises:
        ValueError: The file is larger than `limit`, not UTF-8, not JSON, nested deeper than `JSON_DEPTH`,
            repeats a key, or holds a number that is not finite or longer than `NUMBER_DIGITS`. The message
            does not name the file.
        OSError: It cannot be read.
    """
    return parse_json(read_bytes(path, limit=limit), finite=finite)


def read_bytes(path: Path, *, limit: int = JSON_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        ValueError: The file is larger than `limit` bytes.
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        return read_stream(file, limit=limit)


def read_stream(file: IO[bytes], *, limit: int = JSON_BYTES) -> bytes:
    """The rest of `file`.

    Raises:
        ValueError: It has more than `limit` bytes.
    """
    content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"has more than {limit:,} bytes")
    return content


def parse_toml(content: bytes) -> dict[str, Any]:
    """Parses the TOML document in `content`.

    Raises:
        ValueError: The content is not UTF-8, not TOML, or nested too deeply.
    """
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_json(content: bytes | str, *, finite: bool = True) -> Any:
    """Parses the JSON value in `content`.

    Args:
        content: Text, or UTF-8.
        finite: Refuse NaN and Infinity, which Python writes although they are not JSON.
    Raises:
        ValueError: The content is invalid; see `read_json`.
    """
    if isinstance(content, bytes):
        try:
            content = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(
            content,
            parse_int=_int,
            parse_float=_float,
            parse_constant=_constant if finite else None,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {JSON_DEPTH}") from None
    _require_shallow(value)
    if "\\ud" in content.lower():
        _require_unicode(value)
    return value


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _int(text: str) -> int:
    _require_short(text)
    return int(text)


def _float(text: str) -> float:
    _require_short(text)
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text} is too large")
    return value


def _require_short(text: str) -> None:
    if len(text) > NUMBER_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits; expected at most {NUMBER_DIGITS}")


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} occurs twice")
    return value


def _require_unicode(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, which is not valid text") from None


def _require_shallow(value: Any) -> None:
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {JSON_DEPTH}")
