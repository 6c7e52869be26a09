"""Which data a run began with: kept in its folder, and held against the data that it goes on with."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ham_dist.data.format.manifest import Manifest
from ham_dist.io.hashing import sha256_of_json

# Differences that a message shows.
_SHOWN = 8


def record_of(manifest: Manifest) -> dict[str, Any]:
    """What names the data: the whole manifest but the versions of the programs that prepared it, and the checks that they made of it."""
    return manifest.model_dump(mode="json", exclude={"engine", "checks"})


def digest_of(manifest: Manifest) -> str:
    """sha256 of the record as canonical JSON (keys in order, no spaces), in hexadecimal; every shard's and vocabulary's own sha256 is in it."""
    return sha256_of_json(record_of(manifest), ensure_ascii=False)


def differences(old: dict[str, Any], manifest: Manifest) -> list[str]:
    """One line for each part in which `manifest` is not as the record `old`, such as `splits.train.rows: 800, not 900`; long lists are cut."""
    # Through JSON, as the record has been: tuples are lists then.
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
    """What an entry of a list calls itself, where both call it the same."""
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
