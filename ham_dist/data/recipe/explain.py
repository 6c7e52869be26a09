"""Messages about mistakes in a recipe."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from ham_dist.data.recipe.fields import (
    COLUMN_NAME,
    NAME,
    RECIPE_NAME,
    Categorical,
    FileSplit,
    Format,
    Join,
    Label,
    MultiValued,
    Numeric,
    RandomSplit,
    RecipeSection,
    SampleFiles,
    Time,
)

_SHOWN_LETTERS = 80

# Sections by the last element of an error's location that is not a number or a field name, to suggest a key
# of that section for an unknown one.
_SECTIONS: dict[str, type[RecipeSection]] = {
    "format": Format,
    "samples": SampleFiles,
    "joins": Join,
    "label": Label,
    "categorical": Categorical,
    "numeric": Numeric,
    "time": Time,
    "multi_valued": MultiValued,
    "files": FileSplit,
    "random": RandomSplit,
}


# Descriptions of the patterns of names.
_PATTERNS = {
    NAME: "a field name has only letters, digits and _, and starts with a letter; "
    'for a column with another name, set column = "..."',
    COLUMN_NAME: "a column name must not have control characters",
    RECIPE_NAME: "a data set name has only letters, digits, dots, dashes and _, "
    "and starts with a letter or digit",
}


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}..."


def explain(item: Any, recipe: type[RecipeSection]) -> str:
    """Returns the message for one of pydantic's errors: location, value, and the expected value.

    Args:
        item: An entry of `ValidationError.errors()`.
        recipe: The class of the whole recipe; its keys are suggested for an unknown key outside of all
            sections.
    """
    place = [str(part) for part in item["loc"]]
    # For a discriminated union, pydantic adds the kind after the field's name; it is not a key of the file.
    shown = ".".join(
        part for number, part in enumerate(place) if (number, place[0]) not in ((2, "fields"), (1, "split"))
    )
    if item["type"] == "extra_forbidden":
        part = next((_SECTIONS[name] for name in reversed(place[:-1]) if name in _SECTIONS), recipe)
        keys = list(part.model_fields)
        return f"{shown}: unknown key{nearest(place[-1], keys) or '; valid keys are ' + ', '.join(keys)}"
    if item["type"] == "missing":
        return f"{shown}: is missing and has no default; add it"
    if item["type"] == "columns":
        return str(item["msg"])
    got = item["input"]
    value = "" if isinstance(got, dict | list) else f" = {_short(repr(got))}"
    message = item["msg"]
    if item["type"] == "string_pattern_mismatch":
        message = _PATTERNS.get(item["ctx"]["pattern"], message)
        if place[-1] == "[key]" and place[0] == "fields":
            shown = "fields"
    if item["type"] == "literal_error":
        message = f"must be {item['ctx']['expected']}"
    return f"{shown}{value}: {message[0].lower()}{message[1:]}"


def nearest(word: str, words: Iterable[str]) -> str:
    """Returns a suggestion to append to a message about `word`; empty if none of `words` is similar."""
    near = get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]}?" if near else ""
