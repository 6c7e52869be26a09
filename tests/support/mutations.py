"""Damages files: bytes, values of JSON and TOML, columns of Parquet, and other things in place of a file."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ham_dist.io.hashing import sha256_of, sha256_of_json

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**40, 2**63, 10**30, 10**39,
    0.5, -0.0, 1e-300, 1e300, 1.5e19,
    "", " ", "x", "../x", "/etc/passwd", "a/../../b", "a\0b", "[test]", "[/]", "[red]", "\x1b[31m",
    "\u202e", "\ud800",
    "nan", "fp32", "ä" * 300, "x" * 300, "x" * 100_000, "1" * 5000, [], [[]], {}, {"x": 1}, [None],
    [1, 2], [2**40] * 3, [0] * 1000,
)  # fmt: skip
"""Replacements of a value in JSON."""

TEXTS = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000, b"1e400",
    b"NaN", b"-Infinity", b"null", b"true",
    b'"', b"{}", b"[]", b"[{}]", b"\n" * 50, b"\r", b",", b"::", b"=", b"[[a]]\n", b'"a,b"', b"'''",
    b"x" * 70_000, b"\x1b]0;x\x07", b"PAR1", b"1.0",
)  # fmt: skip
"""Texts that are inserted into a file, or replace it."""


def mutate(folder: Path, files: list[Path], draw: random.Random) -> str:
    """Damages one of `files` in place, and returns a description."""
    path = draw.choice(files)
    name = path.relative_to(folder).as_posix()
    structural = {
        ".json": _mutate_json,
        ".jsonl": _mutate_lines,
        ".toml": _mutate_toml,
        ".parquet": _mutate_parquet,
    }
    if path.suffix in structural and draw.random() < 0.7:
        done = structural[path.suffix](path, draw)
    elif draw.random() < 0.12:
        done = _replace(path, draw)
    else:
        done = _mutate_bytes(path, draw)
    if draw.random() < 0.8:
        _vouch(folder, path)
    return f"{name}: {done}"


def _replace(path: Path, draw: random.Random) -> str:
    path.unlink()
    kind = draw.choice(("missing", "folder", "FIFO", "itself", "device", "outside"))
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "itself":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "outside":
        path.symlink_to("/etc/passwd")
    return kind


def _mutate_bytes(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 1, 3, 20))):
        start, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
        kind = draw.choice(("cut", "flip", "delete", "insert", "double", "whole"))
        if kind == "cut":
            del content[start:]
        elif kind == "flip" and content:
            content[min(start, len(content) - 1)] ^= 1 << draw.randrange(8)
        elif kind == "delete":
            del content[start : min(end, start + 50)]
        elif kind == "insert":
            content[start:start] = draw.choice(TEXTS)
        elif kind == "double":
            content[start:start] = content[start : min(end, start + 200)]
        elif kind == "whole":
            content = bytearray(draw.choice(TEXTS))
    path.write_bytes(content)
    return "bytes"


def _mutate_json(path: Path, draw: random.Random) -> str:
    content = json.loads(path.read_text(encoding="utf-8"))
    done = []
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        content, change = _changed(content, draw)
        done.append(change)
    path.write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")
    return "; ".join(done)


def _mutate_lines(path: Path, draw: random.Random) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    place = draw.randrange(len(lines))
    changed, change = _changed(json.loads(lines[place]), draw)
    lines[place] = json.dumps(changed)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return change


def _changed(content: Any, draw: random.Random) -> tuple[Any, str]:
    """`content` with one value replaced, removed, renamed or doubled."""
    nodes = list(_nodes(content))
    if not nodes:
        return draw.choice(VALUES), "all"
    # By depth first, so that a long list does not take all the draws.
    depth = draw.choice(sorted({node[2] for node in nodes}))
    parent, key, _ = draw.choice([node for node in nodes if node[2] == depth])
    kind = draw.choice(("value", "value", "value", "remove", "rename", "copy"))
    if kind == "value":
        parent[key] = draw.choice(VALUES)
    elif kind == "remove":
        del parent[key]
    elif kind == "copy":
        other, place, _ = draw.choice(nodes)
        if (isinstance(other, dict) and place not in other) or (
            isinstance(other, list) and place >= len(other)
        ):
            return content, "nothing"
        parent[key] = json.loads(json.dumps(other[place]))
    elif isinstance(parent, dict):
        parent[str(draw.choice(VALUES))[:400]] = parent.pop(key)
    else:
        parent.insert(0, parent[key])
    return content, f"{kind} {key!r}"


def _nodes(content: Any, depth: int = 0) -> Iterator[tuple[Any, Any, int]]:
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in items:
        yield content, key, depth
        yield from _nodes(value, depth + 1)


def _mutate_toml(path: Path, draw: random.Random) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.choice(
            [number for number, line in enumerate(lines) if "=" in line or line.startswith("[")]
        )
        kind = draw.choice(("value", "value", "value", "name", "remove", "double"))
        name, equals, _ = lines[place].partition("=")
        if kind == "value" and equals:
            value = draw.choice(VALUES)
            lines[place] = f"{name}= {json.dumps(value) if not isinstance(value, dict) else '{ x = 1 }'}"
        elif kind == "name":
            lines[place] = lines[place].replace(name.strip(), json.dumps(str(draw.choice(VALUES))[:400]), 1)
        elif kind == "remove":
            lines[place] = "#"
        else:
            lines.insert(place, lines[place])
    path.write_text("\n".join(lines), encoding="utf-8")
    return "lines"


def _mutate_parquet(path: Path, draw: random.Random) -> str:
    table = pq.read_table(path, partitioning=None)
    kind = draw.choice(
        ("text", "wide", "negative", "same", "null", "fewer columns", "no rows", "renamed", "lists")
    )
    place = draw.randrange(table.num_columns)
    column, rows = table.schema.names[place], table.num_rows
    columns: dict[str, Any] = {
        "text": pa.array([f"x{row}" for row in range(rows)]),
        "wide": pa.array([2**40 + row for row in range(rows)], pa.int64()),
        "negative": pa.array([-1 - row for row in range(rows)], pa.int32()),
        "same": pa.array([1] * rows, pa.int32()),
        "null": pa.nulls(rows, table.schema.field(column).type),
        "lists": pa.array([[[1]]] * rows),
    }
    if kind in columns:
        table = table.set_column(place, column, columns[kind])
    elif kind == "fewer columns":
        table = table.drop_columns([column])
    elif kind == "no rows":
        table = table.slice(0, 0)
    else:
        table = table.rename_columns(
            [draw.choice(("\x1b[31m", "[/]", "label", "x" * 300, "")), *table.column_names[1:]]
        )
    pq.write_table(table, path)
    return f"{kind} {column}"


def _vouch(folder: Path, path: Path) -> None:
    """Updates the hashes and sizes of a damaged file in the manifest, so that no hash reveals the damage."""
    top = folder / path.relative_to(folder).parts[0]
    manifest = top / "manifest.json"
    regular = path.is_file() and not path.is_symlink()
    if not (manifest.is_file() and regular) or manifest.stat().st_size > 1 << 20:
        return
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if path != manifest:
            _vouch_in(content, path.relative_to(top).as_posix(), path.stat().st_size, sha256_of(path))
        if top.name == "bundle":
            content.pop("checksum", None)
            content["checksum"] = sha256_of_json(content)
        manifest.write_text(json.dumps(content), encoding="utf-8")
    except (ValueError, AttributeError, TypeError, RecursionError):
        pass  # the manifest itself is what was damaged


def _vouch_in(content: Any, name: str, size: int, sha256: str) -> None:
    for parent, key, _ in list(_nodes(content)):
        value = parent[key]
        if key == name and isinstance(value, dict):
            value |= {"size": size, "sha256": sha256}
        elif isinstance(value, dict) and value.get("file") == name and "sha256" in value:
            value |= {"bytes": size, "sha256": sha256}
