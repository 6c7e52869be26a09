"""Settings as TOML, and values as text for messages."""

import json
from collections.abc import Iterator
from typing import Any

import tomlkit
from pydantic import BaseModel
from tomlkit.items import Table


def leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted key and the value of every setting of a section."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def fill(container: tomlkit.TOMLDocument | Table, section: BaseModel) -> None:
    """Adds the keys of `section` to `container`.

    Keys with plain values come first: in TOML, a key after a subsection would belong to the subsection.
    """
    subsections: dict[str, BaseModel] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            subsections[name] = value
        elif value is not None:
            if field.description:
                container.add(tomlkit.comment(field.description))
            container.add(name, toml_item(value))
    for name, subsection in subsections.items():
        container.add(tomlkit.nl())
        table = tomlkit.table()
        if type(subsection).__doc__:
            table.comment(str(type(subsection).__doc__))
        fill(table, subsection)
        container.add(name, table)


def toml_item(value: Any) -> Any:
    """The TOML item of a value. A section in a list, and a dict, become inline tables."""
    if isinstance(value, BaseModel | dict):
        inline = tomlkit.inline_table()
        inline.update(
            {
                name: toml_item(entry)
                for name, entry in (value.items() if isinstance(value, dict) else value)
                if entry is not None
            }
        )
        return inline
    if isinstance(value, tuple):
        array = tomlkit.array()
        array.extend(toml_item(entry) for entry in value)
        return array
    return tomlkit.item(value)


def show(value: Any) -> str:
    """A value as the user wrote it, truncated to 80 characters."""
    text = (
        "nothing"
        if value is None
        else json.dumps(value, default=lambda other: other.model_dump(exclude_none=True), ensure_ascii=False)
    )
    return text if len(text) <= 80 else text[:77] + "..."
