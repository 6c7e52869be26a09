"""Finds the section of a key, including sections whose class depends on their `name`."""

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ham_dist.config.choice import Choice
from ham_dist.config.schema import METHODS, MODELS, RunSettings

BY_NAME: dict[str, Choice[Any]] = {"model": MODELS, "search.method": METHODS}
"""Sections whose keys depend on their `name`."""


def owners(parents: Sequence[str | int], key: str | int) -> list[str]:
    """The values of a section's `name` for which it has `key`; empty for sections without such a choice."""
    choice = BY_NAME.get(dotted(parents))
    if choice is None:
        return []
    return [name for name in choice.names() if (kind := choice.class_of(name)) and key in kind.model_fields]


def model_at(place: Sequence[str | int], tree: Mapping[str, Any]) -> type[BaseModel] | None:
    """The class of the section at `place` in `tree`; a number in `place` is an index in a list."""
    model: type[BaseModel] = RunSettings
    value: Any = tree
    for number, part in enumerate(place, start=1):
        if isinstance(part, int):
            continue
        value = value.get(part, {}) if isinstance(value, Mapping) else {}
        choice = BY_NAME.get(dotted(place[:number]))
        if choice is not None and (chosen := choice.class_of(value)) is not None:
            model = chosen
            continue
        field = model.model_fields.get(part)
        found = list(models_in(field.annotation)) if field else []
        if not found:
            return None
        model = found[0]
    return model


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, BaseModel)
    ):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models_in(argument)


def dotted(place: Sequence[str | int]) -> str:
    """`search.targets[0].columns` of ("search", "targets", 0, "columns")."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
