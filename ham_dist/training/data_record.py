"""The record of a run's data, kept in its folder: a resumed run must use the same data."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ham_dist.data.format.manifest import Manifest
from ham_dist.io.hashing import sha256_of_json

# Number of differences that a message shows.
_SHOWN = 8


def record_of(manifest: Manifest) -> dict[str, Any]:
    """Returns the parts of the manifest that identify the data.

    Left out are the versions of the programs that prepared it, and their checks.
    """
    return manifest.model_dump(mode="json", exclude={"engine", "checks"})


def digest_of(manifest: Manifest) -> str:
    """Returns the sha256 of the record as canonical JSON (sorted keys, no spaces), in hexadecimal.

    The record contains the sha256 of every shard and vocabulary.
    """
    return sha256_of_json(record_of(manifest), ensure_ascii=False)


def differences(old: dict[str, Any], manifest: Manifest) -> list[str]:
    """Returns one line for each difference of `manifest` from the record `old`; long lists are cut.

    A line looks like `splits.train.rows: 800, not 900`.
    """
    # The record was read from JSON, where tuples become lists; do the same here.
    lines = _differences("", old, json.loads(json.dumps(record_of(manifest))))
    shown = list(islice(lines, _SHOWN))
    left = sum(1 for _ in lines)
    return [*shown, f"and {left:,} more"] if left else shown


def _differences(place: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(f"{place}.{key}".removeprefix("."), old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(f"{place}[{_name(before, after, number)}]", before, after)
    elif old != new:
        yield f"{place}: {_show(old)}, not {_show(new)}"


def _name(before: Any, after: Any, number: int) -> Any:
    """The name or file of a list entry if it is the same in both, else its number."""
    for key in ("name", "file"):
        if (
            isinstance(before, dict)
            and isinstance(after, dict)
            and key in before
            and before[key] == after.get(key)
        ):
            return before[key]
    return number


def _show(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value):,} entries"
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
