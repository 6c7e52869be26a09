"""Reading what strangers hand over: regular files inside their folder, and JSON within limits."""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

JSON_BYTES = 1 << 26
"""Largest JSON file that is read (64 MiB). The largest of ours, a manifest of 10^5 shards, has about 20 MB."""
JSON_DEPTH = 100
"""Deepest nesting; ours has less than 10."""
NUMBER_DIGITS = 40
"""Longest number; int64 has 19 digits and float64 is written with 17 to 24 characters."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: There is none, it cannot be read, or it is a folder, a FIFO, a socket or a device (which could block or
            never end).
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
        ValueError: It leads out of the folder, by `..`, an absolute path or a symbolic link.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of {folder}")
    return path


def read_json(path: Path, *, limit: int = JSON_BYTES) -> Any:
    """The JSON value in a file in UTF-8.

    Args:
        path: A regular file.
        limit: Most bytes that are read.
    Raises:
        ValueError: It is larger than `limit`, not UTF-8, not JSON, nested deeper than `JSON_DEPTH`, names a key twice, or
            holds a number that is not finite or longer than `NUMBER_DIGITS`. The message does not name the file.
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"has more than {limit:,} bytes")
    return parse_json(content)


def parse_json(content: bytes | str) -> Any:
    """The JSON value in `content`; raises ValueError as `read_json`."""
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
            parse_constant=_constant,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {JSON_DEPTH}") from None
    _require_shallow(value)
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
        raise ValueError(f"a number of {len(text):,} digits")


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} occurs twice")
    return value


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
