"""Reads settings from a TOML file and `--set a.b=c`, and writes them as TOML.

All mistakes are reported together, each with its place and how to fix it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError

from ham_dist.config.migrate import migrate_run
from ham_dist.config.mistakes import describe
from ham_dist.config.schema import RunSettings
from ham_dist.config.search_presets import lay
from ham_dist.config.sections import BY_NAME
from ham_dist.config.text import fill, leaves, show
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
                f"{whole_run if from_override or path is None else path}: {describe(problem, tree)}"
            )
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return settings


def dump_run(settings: RunSettings) -> str:
    """Returns TOML with every key of `settings`, each below its description.

    `load_run` of it gives equal settings. Keys that are None are omitted.
    """
    document = tomlkit.document()
    fill(document, settings)
    return tomlkit.dumps(document)


def flat(settings: RunSettings) -> dict[str, Any]:
    """The settings as JSON values by dotted key: `{"search.epochs": 10, ...}`."""
    plain: dict[str, Any] = json.loads(settings.model_dump_json())
    return {key: _at(plain, key) for key, _ in leaves(settings)}


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
    before, after = dict(leaves(old)), dict(leaves(new))
    keys = dict.fromkeys([*before, *after])
    return [
        (key, show(before.get(key)), show(after.get(key)))
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
