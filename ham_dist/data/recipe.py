"""What raw files hold and what becomes of them: a recipe, read from datasets/<name>.toml and checked whole before a row is read."""

import tomllib
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

import ham_dist
from ham_dist.errors import DataError

# Field names become keys of a KeyedJaggedTensor, parts of parameter names (no dots) and file names.
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Separator = Annotated[str, Field(min_length=1, max_length=4)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Format(_Part):
    """How the raw text files are written."""

    separator: Separator
    """Between two columns: one to four characters."""
    header: bool = False
    """Whether the first line names the columns; the names are then checked against the recipe's."""
    encoding: Literal["utf-8", "latin-1", "utf-16"] = "utf-8"
    """Of the text."""


class Samples(_Part):
    """The file whose lines are the samples."""

    file: Annotated[str, Field(min_length=1)]
    """Name in the raw folder; the same name with `.gz` behind it is taken as well."""
    columns: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Names of its columns, left to right."""


class Join(Samples):
    """A side file: one line a key, whose other columns are added to each sample with that key."""

    key: Name
    """Column that both the samples (or an earlier side file) and this file have."""


class Label(_Part):
    """What makes a sample positive or negative; one that is neither is dropped."""

    column: Name
    """A column of numbers in the samples file."""
    positive_above: float
    """Positive where the column is greater than this."""
    negative_below: float
    """Negative where the column is less than this."""

    @model_validator(mode="after")
    def _never_both(self) -> "Label":
        if self.negative_below > self.positive_above:
            raise PydanticCustomError(
                "label", "negative_below = {below} is above positive_above = {above}: numbers between them would be both",
                {"below": self.negative_below, "above": self.positive_above},
            )  # fmt: skip
        return self


class Categorical(_Part):
    """One value a sample."""

    kind: Literal["categorical"]


class MultiValued(_Part):
    """Any number of values a sample, in one column."""

    kind: Literal["multi_valued"]
    separator: Separator
    """Between two values."""


class Recipe(_Part):
    """A data set: its files, its label and its fields."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Of the data set."""
    source: Annotated[str, Field(min_length=1)]
    """Where the raw files come from; told to a user who lacks one."""
    min_count: Annotated[int, Field(ge=1)] = 1
    """A value seen fewer times than this in the training split becomes unknown (id 0)."""
    format: Format
    samples: Samples
    joins: tuple[Join, ...] = ()
    label: Label
    fields: Annotated[dict[Name, Annotated[Categorical | MultiValued, Field(discriminator="kind")]], Field(min_length=1)]
    """The model's fields, in order; each is a column of the files."""
    ignored: dict[Name, str] = {}
    """Columns left out, each with the reason."""

    @model_validator(mode="after")
    def _columns_fit(self) -> "Recipe":
        mistakes = _column_mistakes(self)
        if mistakes:
            raise PydanticCustomError("columns", "{text}", {"text": "\n".join(mistakes)})
        return self

    def separators(self) -> dict[str, str | None]:
        """The fields in order, each with what separates its values; None for a field of one value."""
        return {name: field.separator if isinstance(field, MultiValued) else None for name, field in self.fields.items()}


def _column_mistakes(recipe: Recipe) -> list[str]:
    """Every disagreement between the columns that the files have and the columns that the recipe uses."""
    mistakes: list[str] = []
    columns: list[str] = []
    for where, part in [("samples", recipe.samples), *((f"joins.{number}", join) for number, join in enumerate(recipe.joins))]:
        mistakes += [f"{where}.columns: {column} is there twice" for column in sorted({c for c in part.columns if part.columns.count(c) > 1})]
        fresh = list(part.columns)
        if isinstance(part, Join):
            if part.key not in part.columns:
                mistakes.append(f"{where}.key = {part.key!r}: not one of its own columns ({', '.join(part.columns)})")
            if part.key not in columns:
                mistakes.append(f"{where}.key = {part.key!r}: no file before it has that column{_nearest(part.key, columns)}")
            fresh = [column for column in part.columns if column != part.key]
        mistakes += [f"{where}.columns: {column} is a column of an earlier file too; rename one" for column in fresh if column in columns]
        columns += fresh
    # DuckDB takes User and user for one column, and some file systems for one file.
    mistakes += [f"columns {other} and {column} differ in capitals only; rename one" for other, column in _same_but_for_capitals(columns)]
    if recipe.label.column not in recipe.samples.columns:
        mistakes.append(f"label.column = {recipe.label.column!r}: not a column of samples{_nearest(recipe.label.column, recipe.samples.columns)}")
    for where, used in (("fields", recipe.fields), ("ignored", recipe.ignored)):
        mistakes += [f"{where}.{column}: no file has that column{_nearest(column, columns)}" for column in used if column not in columns]
    for column in columns:
        uses = (column in recipe.fields) + (column in recipe.ignored) + (column == recipe.label.column)
        if uses != 1:
            so = "is used nowhere; add it to fields or to ignored" if uses == 0 else "must be one of: a field, ignored, the label's column"
            mistakes.append(f"column {column} {so}")
    taken = [field for field in recipe.fields if field.casefold() == "label"]
    mistakes += [f"fields.{field}: that name is taken by the label itself; rename the column" for field in taken]
    return mistakes


def _same_but_for_capitals(columns: list[str]) -> list[tuple[str, str]]:
    return [(a, b) for a, b in combinations(dict.fromkeys(columns), 2) if a.casefold() == b.casefold()]


def _nearest(word: str, words: Any) -> str:
    near = get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def load_recipe(name: str) -> Recipe:
    """The recipe called `name` (a file datasets/<name>.toml here or beside the package), or the one in the TOML file `name`.

    raises: DataError with every mistake of the file, or with the recipes that exist.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise DataError(f"{name}: no such recipe file\n  Give a TOML file that is there, or one of the names: {', '.join(recipe_names())}.")
        return _read(path)
    for folder in _folders():
        path = folder / f"{name}.toml"
        if path.is_file():
            return _read(path)
    names = recipe_names()
    mend = f"Give {'one of: ' + ', '.join(names) + '; or ' if names else ''}the path of a TOML file."
    raise DataError(f"recipe {name!r}: there is none of that name{_nearest(name, names)}\n  {mend}")


def recipe_names() -> list[str]:
    """Names that `load_recipe` knows."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.toml")})


def _folders() -> list[Path]:
    return [Path("datasets"), Path(ham_dist.__file__).parents[1] / "datasets"]


def _read(path: Path) -> Recipe:
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not TOML: {error}") from None
    return parse_recipe(settings, where=str(path))


def parse_recipe(settings: dict[str, Any], where: str) -> Recipe:
    """The recipe that a TOML file or a manifest holds as `settings`; `where` names it in messages.

    raises: DataError with every mistake, one a line.
    """
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        mistakes = [line for item in error.errors(include_url=False) for line in _explain(item).splitlines()]
        raise DataError("\n".join(f"{where}: {mistake}" for mistake in mistakes)) from None


# Keys of each part, for the suggestion beside an unknown key; the last part of a place that is no number or field name tells which part it is.
_PARTS: dict[str, type[_Part]] = {
    "format": Format,
    "samples": Samples,
    "joins": Join,
    "label": Label,
    "categorical": Categorical,
    "multi_valued": MultiValued,
}


def _explain(item: Any) -> str:
    """One mistake that pydantic found, as place, value and what was wanted."""
    place = [str(part) for part in item["loc"]]
    # A discriminated union puts the kind behind the field's name; it is not a key of the file.
    shown = ".".join(part for number, part in enumerate(place) if not (number == 2 and place[0] == "fields"))
    if item["type"] == "extra_forbidden":
        part = next((_PARTS[name] for name in reversed(place[:-1]) if name in _PARTS), Recipe)
        keys = list(part.model_fields)
        return f"{shown}: unknown key{_nearest(place[-1], keys) or '; the keys here are ' + ', '.join(keys)}"
    if item["type"] == "missing":
        return f"{shown}: is missing; it must be given"
    if item["type"] == "columns":
        return str(item["msg"])
    got = item["input"]
    value = "" if isinstance(got, dict | list) else f" = {got!r}"
    message = item["msg"]
    if item["type"] == "string_pattern_mismatch":
        message = "a name is letters, digits and _, with a letter first"
    return f"{shown}{value}: {message[0].lower()}{message[1:]}"
