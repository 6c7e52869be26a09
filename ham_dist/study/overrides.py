"""Trees of settings that a study lays over each other."""

from collections.abc import Iterator
from typing import Any

from ham_dist.config.sections import BY_NAME, dotted
from ham_dist.study.settings import Overrides


def merged(below: Overrides, above: Overrides) -> Overrides:
    """`below` with the keys of `above`. A model or method of another name replaces the whole section."""
    return _merged(below, above, ())


def _merged(below: Any, above: Any, place: tuple[str, ...]) -> Any:
    if (key := dotted(place)) in BY_NAME:
        below, above = ({"name": part} if isinstance(part, str) else part for part in (below, above))
        if isinstance(above, dict) and isinstance(below, dict):
            name = below.get("name", BY_NAME[key].default)
            if above.get("name", name) != name:
                return above
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {
        name: _merged(below[name], value, (*place, name)) if name in below else value
        for name, value in above.items()
    }


def leaves(tree: Overrides, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The keys of a tree's values, with the values."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*place, name))
        else:
            yield (*place, name), value


def nested(key: tuple[str, ...], value: Any) -> Overrides:
    """The tree with a single value at `key`."""
    for part in reversed(key):
        value = {part: value}
    return dict(value)
