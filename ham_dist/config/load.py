"""Reads settings from a TOML file and `--set a.b=c`, and writes them as TOML.

All mistakes are reported together, each with its place and how to fix it.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel, ValidationError
from tomlkit.items import Table

from ham_dist.config.migrate import RENAMED, migrate_run
from ham_dist.config.schema import RunSettings
from ham_dist.config.search_presets import lay
from ham_dist.config.sections import BY_NAME, dotted, model_at, models_in, owners
from ham_dist.errors import ConfigError
from ham_dist.io.paths import read_content
from ham_dist.io.untrusted import TOML_BYTES, parse_toml

SET = "--set"
PRESET = "search.preset"

DEMO = str(Path(__file__).with_name("demo.toml"))
"""Settings of the demo run: the defaults, except for the keys in this file."""


def load_run(path: str | None, overrides: Sequence[str] = ()) -> RunSettings:
    """Returns the settings of a run.

    Args:
        path: TOML file, a local path or a URL supported by `io/paths.py`; None for all defaults.
        overrides: List of `key=value`; later ones win. The key is dotted. The value is TOML (`3`, `true`,
            `[16, 16]`), or a bare word, which is a string. `search.preset=NAME` sets all keys of the preset,
            also those that the file sets.
    Raises:
        ConfigError: Lists all mistakes in the file and in the overrides.
    """
    return settings_of(read_toml(path) if path is not None else {}, path, overrides)


def load_saved_run(path: Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Like `load_run`, for run.toml of a run folder, which an earlier version may have written."""
    return settings_of(migrate_run(read_toml(str(path))), str(path), overrides)


def settings_of(tree: dict[str, Any], path: str | None, overrides: Sequence[str] = ()) -> RunSettings:
    """Like `load_run`, for settings in `tree` that were read from `path`."""
    mistakes: list[str] = []
    overridden: set[tuple[str, ...]] = set()
    lay(tree, _at(tree, PRESET), over=False)
    for override in overrides:
        try:
            key, value = _parse_override(override)
            _put(tree, key, value)
            if ".".join(key) == PRESET:
                lay(tree, value, over=True)
        except ConfigError as error:
            mistakes.append(str(error))
        else:
            overridden.add(key)
    search = tree.get("search")
    if isinstance(search, dict) and search.get("targets") == "auto":
        search["targets"] = [{"ladder": 5}]
    try:
        # Validated as JSON, because pydantic's strict mode (no "3" for 3) accepts a list for a tuple only
        # there.
        settings = RunSettings.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        for problem in problems:
            place = tuple(str(part) for part in problem["loc"])
            if any(
                len(other["loc"]) > len(place) and tuple(map(str, other["loc"][: len(place)])) == place
                for other in problems
            ):
                continue  # The list has too few valid entries; each invalid entry has its own line.
            from_override = any(place[: len(key)] == key or key[: len(place)] == place for key in overridden)
            whole_run = f"{path} with {SET}" if path is not None and not place else SET
            mistakes.append(
                f"{whole_run if from_override or path is None else path}: {_describe(problem, tree)}"
            )
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return settings


def dump_run(settings: RunSettings) -> str:
    """Returns TOML with every key of `settings`, each below its description.

    `load_run` of it gives equal settings. Keys that are None are omitted.
    """
    document = tomlkit.document()
    _fill(document, settings)
    return tomlkit.dumps(document)


def flat(settings: RunSettings) -> dict[str, Any]:
    """The settings as JSON values by dotted key: `{"search.epochs": 10, ...}`."""
    plain: dict[str, Any] = json.loads(settings.model_dump_json())
    return {key: _at(plain, key) for key, _ in _leaves(settings)}


def from_flat(values: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> RunSettings:
    """The inverse of `flat`, with `overrides` as in `load_run`.

    Raises:
        ConfigError: A key or a value is not valid in a run's settings; messages start with `where`.
    """
    tree: dict[str, Any] = {}
    for key, value in values.items():
        if value is not None:
            _put(tree, tuple(key.split(".")), value)
    return settings_of(tree, where, overrides)


def keys_missing(path: str, wanted: Mapping[str, Any]) -> list[str]:
    """Returns the keys of `wanted` whose value is not None and that the TOML file `path` does not have.

    Raises:
        ConfigError: The file cannot be read, or is not TOML.
    """
    tree = read_toml(path)
    return [key for key, value in wanted.items() if value is not None and _at(tree, key) is None]


def _at(tree: Any, key: str) -> Any:
    """The value of a dotted key in nested dicts; None if there is none."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def differences(old: RunSettings, new: RunSettings) -> list[str]:
    """One line for every key whose value differs: `search.epochs: 10, not 12`."""
    return [f"{key}: {before}, not {after}" for key, before, after in changes(old, new)]


def changes(old: RunSettings, new: RunSettings) -> list[tuple[str, str, str]]:
    """Every key whose value differs, with the old and the new value as JSON; long values are truncated."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = dict.fromkeys([*before, *after])
    return [
        (key, _show(before.get(key)), _show(after.get(key)))
        for key in keys
        if before.get(key) != after.get(key)
    ]


def read_toml(path: str) -> dict[str, Any]:
    """Returns the content of a TOML file, a local path or a URL supported by `io/paths.py`.

    Raises:
        ConfigError: The file cannot be read, or is not TOML.
    """
    try:
        return parse_toml(read_content(path, limit=TOML_BYTES))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error


def _parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    name, equals, text = override.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not text.strip() or not all(key):
        raise ConfigError(f"{SET} {override}: expected key=value, such as {SET} search.epochs=5")
    try:
        parsed = parse_toml(f"value = {text}".encode("utf-8", "surrogatepass"))
    except ValueError:
        return key, text.strip()
    # More than one key: a line break inside the value started a second one.
    return key, parsed["value"] if len(parsed) == 1 else text.strip()


def _put(tree: dict[str, Any], key: tuple[str, ...], value: Any) -> None:
    section = tree
    for depth, part in enumerate(key[:-1], start=1):
        if isinstance(section.get(part), str) and ".".join(key[:depth]) in BY_NAME:
            section[part] = {"name": section[part]}
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            where = ".".join(key[:depth])
            raise ConfigError(
                f"{SET} {'.'.join(key)}: {where} is not a section. Set its whole value: {SET} '{where}=...'"
            )
    section[key[-1]] = value


def _describe(problem: Mapping[str, Any], tree: Mapping[str, Any]) -> str:
    """One mistake found by pydantic, as `key = value: must be ...`."""
    place: tuple[str | int, ...] = problem["loc"]
    key = dotted(place)
    if problem["type"] == "extra_forbidden":
        return f"{key}: no such key.{_suggest_key(place, tree)}"
    wanted = _wanted(problem, tree)
    if problem["type"] == "value_error":
        return f"{key}: {wanted}" if key else wanted
    described = f"{key} = {_show(problem['input'])}: {wanted}"
    if problem["type"] == "literal_error":
        choices = [
            part for part in problem["ctx"]["expected"].split("'") if part.isidentifier() and part != "or"
        ]
        described += "." + _did_you_mean(difflib.get_close_matches(str(problem["input"]), choices, n=1))
    return described + (f"\n  {description}" if (description := _description(place, tree)) else "")


_NOUNS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a section with keys of its own",
}
"""The values that a key accepts, by pydantic's type of the error."""


def _wanted(problem: Mapping[str, Any], tree: Mapping[str, Any]) -> str:
    """The values that the key accepts, as `must be ...`."""
    kind, place, got = problem["type"], problem["loc"], problem["input"]
    if kind in _NOUNS:
        return f"must be {_NOUNS[kind]}"
    if kind in ("tuple_type", "list_type"):
        return f"must be a list, such as {_example(place, got, tree)}"
    if kind == "too_short":
        count = problem["ctx"]["min_length"]
        entries = "entry" if count == 1 else "entries"
        return f"must have at least {count} {entries}, such as {_example(place, got, tree)}"
    if kind in ("model_type", "model_attributes_type"):
        entry = (
            f", such as {_item(_entry(place, got, tree)).as_string()}" if isinstance(place[-1], int) else ""
        )
        return f"must be a section with keys of its own{entry}"
    return str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "must")


def _example(place: Sequence[str | int], got: Any, tree: Mapping[str, Any]) -> str:
    """A valid list for the key at `place`, in TOML: with `got` as its entry if possible, else the default."""
    section = model_at(place[:-1], tree)
    field = section.model_fields[str(place[-1])] if section else None
    if field is not None and list(models_in(field.annotation)) and isinstance(got, int | dict):
        return str(_item((_entry(place, got, tree),)).as_string())
    return str(_item(field.default if field is not None else ()).as_string())


def _entry(place: Sequence[str | int], got: Any, tree: Mapping[str, Any]) -> dict[str, Any]:
    """An example of the section at `place`: `got`, or the section's first key with `got` as its value."""
    section = model_at(place, tree)
    return got if isinstance(got, dict) or section is None else {next(iter(section.model_fields)): got}


def _suggest_key(place: tuple[str | int, ...], tree: Mapping[str, Any]) -> str:
    """A suggestion for an unknown key.

    The new name of an earlier version's key; else the closest key of the same section; else the closest key
    of any section; else all keys of the section.
    """
    *parents, name = place
    if (new := RENAMED.get(dotted(place))) is not None:
        return f" It is called {new}; set it in the section [{new.rpartition('.')[0]}]."
    section = model_at(parents, tree)
    if section is None:
        return ""
    if having := owners(parents, name):
        return f" It belongs to {dotted(parents)}.name = {' or '.join(map(repr, having))}."
    siblings = difflib.get_close_matches(str(name), section.model_fields, n=1)
    if siblings:
        return _did_you_mean([dotted((*parents, siblings[0]))])
    everywhere = {
        key.rsplit(".", 1)[-1]: key for key, _ in _leaves(RunSettings()) if not key.endswith(".name")
    }
    elsewhere = difflib.get_close_matches(str(name), everywhere, n=1)
    if elsewhere:
        return _did_you_mean([everywhere[elsewhere[0]]])
    return f" {dotted(parents) or 'A run'} has: {', '.join(section.model_fields)}."


def _did_you_mean(matches: list[str]) -> str:
    return f" Did you mean {matches[0]}?" if matches else ""


def _description(place: Sequence[str | int], tree: Mapping[str, Any]) -> str:
    names = [part for part in place if isinstance(part, str)]
    section = model_at(place[: place.index(names[-1])], tree) if names else None
    field = section.model_fields.get(names[-1]) if section else None
    return (field.description or "") if field else ""


def _leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _fill(container: tomlkit.TOMLDocument | Table, section: BaseModel) -> None:
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
            container.add(name, _item(value))
    for name, subsection in subsections.items():
        container.add(tomlkit.nl())
        table = tomlkit.table()
        if type(subsection).__doc__:
            table.comment(str(type(subsection).__doc__))
        _fill(table, subsection)
        container.add(name, table)


def _item(value: Any) -> Any:
    """The TOML item of a value. A section in a list, and a dict, become inline tables."""
    if isinstance(value, BaseModel | dict):
        inline = tomlkit.inline_table()
        inline.update(
            {
                name: _item(entry)
                for name, entry in (value.items() if isinstance(value, dict) else value)
                if entry is not None
            }
        )
        return inline
    if isinstance(value, tuple):
        array = tomlkit.array()
        array.extend(_item(entry) for entry in value)
        return array
    return tomlkit.item(value)


def _show(value: Any) -> str:
    """A value as the user wrote it, truncated to 80 characters."""
    text = (
        "nothing"
        if value is None
        else json.dumps(value, default=lambda other: other.model_dump(exclude_none=True), ensure_ascii=False)
    )
    return text if len(text) <= 80 else text[:77] + "..."
