"""Messages about settings that pydantic refuses: the place, the value, what is expected, and a suggestion."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ham_dist.config.migrate import RENAMED
from ham_dist.config.schema import RunSettings
from ham_dist.config.sections import dotted, model_at, models_in, owners
from ham_dist.config.text import leaves, show, toml_item


def describe(problem: Mapping[str, Any], tree: Mapping[str, Any]) -> str:
    """One mistake found by pydantic, as `key = value: must be ...`."""
    place: tuple[str | int, ...] = problem["loc"]
    key = dotted(place)
    if problem["type"] == "extra_forbidden":
        return f"{key}: no such key.{_suggest_key(place, tree)}"
    wanted = _wanted(problem, tree)
    if problem["type"] == "value_error":
        return f"{key}: {wanted}" if key else wanted
    described = f"{key} = {show(problem['input'])}: {wanted}"
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
        one = toml_item(_entry(place, got, tree)).as_string()
        entry = f", such as {one}" if isinstance(place[-1], int) else ""
        return f"must be a section with keys of its own{entry}"
    return str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "must")


def _example(place: Sequence[str | int], got: Any, tree: Mapping[str, Any]) -> str:
    """A valid list for the key at `place`, in TOML: with `got` as its entry if possible, else the default."""
    section = model_at(place[:-1], tree)
    field = section.model_fields[str(place[-1])] if section else None
    if field is not None and list(models_in(field.annotation)) and isinstance(got, int | dict):
        return str(toml_item((_entry(place, got, tree),)).as_string())
    return str(toml_item(field.default if field is not None else ()).as_string())


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
        key.rsplit(".", 1)[-1]: key for key, _ in leaves(RunSettings()) if not key.endswith(".name")
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
