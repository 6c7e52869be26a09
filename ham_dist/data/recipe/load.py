"""What raw files hold and what becomes of them: a recipe, read from datasets/<name>.toml and checked whole before a row is read."""

import sysconfig
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

import ham_dist
from ham_dist.data.recipe.fields import (
    COLUMN_NAME,
    NAME,
    AnyField,
    AnySplit,
    Categorical,
    ColumnName,
    Count,
    FileSplit,
    Format,
    Join,
    Label,
    MultiValued,
    Name,
    Numeric,
    RandomSplit,
    RecipeSection,
    SampleFiles,
    TableRows,
    Time,
)
from ham_dist.errors import DataError
from ham_dist.io.untrusted import TOML_BYTES, parse_toml, read_bytes

RECIPE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
# Names that columns of ours have in what is staged and encoded.
_RESERVED = ("_row", "_label", "_cell", "_ids", "_key")


class Recipe(RecipeSection):
    """A data set: its files, its label and its fields."""

    name: Annotated[str, Field(pattern=RECIPE_NAME, max_length=150)]
    """Of the data set."""
    source: Annotated[str, Field(min_length=1)]
    """Where the raw files come from; told to a user who lacks one."""
    min_count: Count = 1
    """A value seen fewer times than this in the training split becomes unknown (id 0)."""
    max_rows: TableRows | None = None
    """The most rows that a table may have, id 0 counted: the most frequent values keep theirs, the others become unknown."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.0001
    """The share of a file's lines that may be rejected (0.0001 is 0.01 %); above it, preparing stops."""
    format: Format
    samples: SampleFiles
    joins: tuple[Join, ...] = ()
    label: Label
    fields: Annotated[dict[Name, AnyField], Field(min_length=1)]
    """The model's fields, in order."""
    ignored: dict[ColumnName, str] = Field(default_factory=dict)
    """Columns left out, each with the reason."""
    split: AnySplit = RandomSplit(kind="random")
    """Which samples are train, validation and test."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        mistakes = _column_mistakes(self) + _field_mistakes(self) + _split_mistakes(self)
        if mistakes:
            raise PydanticCustomError("columns", "{text}", {"text": "\n".join(mistakes)})
        return self

    def separators(self) -> dict[str, str | None]:
        """The fields in order, each with what separates its values; None for a field of one value."""
        return {
            name: field.separator if isinstance(field, MultiValued) else None
            for name, field in self.fields.items()
        }

    def column(self, field: str) -> str:
        """The column that a field is made from."""
        column = self.fields[field].column
        return field if column is None else column

    def min_count_of(self, field: str) -> int:
        """How often training must have a value of the field for it to get an id."""
        return self.fields[field].min_count or self.min_count

    def max_rows_of(self, field: str) -> int | None:
        """The most rows that the table of the field may have, if there is such a bound."""
        return self.fields[field].max_rows or self.max_rows

    def columns_of(self, fields: Iterable[str]) -> dict[str, str]:
        """The columns that `fields` are made from and the keys of side files, each as `string` or `float64` (columns of numbers)."""
        kinds = {
            self.column(field): "float64" if isinstance(self.fields[field], Numeric) else "string"
            for field in fields
        }
        return {join.key: "string" for join in self.joins} | kinds


def _column_mistakes(recipe: Recipe) -> list[str]:
    """Every disagreement between the columns that the files have and the columns that the recipe uses."""
    mistakes: list[str] = []
    columns: list[str] = []
    parts: list[tuple[str, SampleFiles | Join]] = [
        ("samples", recipe.samples),
        *((f"joins.{number}", join) for number, join in enumerate(recipe.joins)),
    ]
    for where, part in parts:
        mistakes += [
            f"{where}.columns: {column} is there twice"
            for column in sorted({c for c in part.columns if part.columns.count(c) > 1})
        ]
        fresh = list(part.columns)
        if isinstance(part, Join):
            if part.key not in part.columns:
                mistakes.append(
                    f"{where}.key = {part.key!r}: not one of its own columns ({', '.join(part.columns)})"
                )
            if part.key not in columns:
                mistakes.append(
                    f"{where}.key = {part.key!r}: no file before it has that column{_nearest(part.key, columns)}"
                )
            fresh = [column for column in part.columns if column != part.key]
        mistakes += [
            f"{where}.columns: {column} is a column of an earlier file too; rename one"
            for column in fresh
            if column in columns
        ]
        columns += fresh
    # DuckDB takes User and user for one column, and some file systems for one file.
    mistakes += [
        f"columns {other} and {column} differ in capitals only; rename one"
        for other, column in _same_but_for_capitals(columns)
    ]
    if recipe.label.column not in recipe.samples.columns:
        mistakes.append(
            f"label.column = {recipe.label.column!r}: not a column of samples{_nearest(recipe.label.column, recipe.samples.columns)}"
        )
    for where, used in (
        ("fields", {field: recipe.column(field) for field in recipe.fields}),
        ("ignored", {column: column for column in recipe.ignored}),
    ):
        mistakes += [
            f"{where}.{name}: no file has that column{_nearest(column, columns)}"
            for name, column in used.items()
            if column not in columns
        ]
    read = [recipe.column(field) for field in recipe.fields]
    mistakes += [
        f'columns: {column!r} cannot be the name of a column that is used; give it another name, and set format.header = "skip"'
        for column in dict.fromkeys([*read, recipe.label.column, *(join.key for join in recipe.joins)])
        if not column or column.casefold() in _RESERVED
    ]
    for column in columns:
        uses = (column in read) + (column in recipe.ignored) + (column == recipe.label.column)
        if uses != 1:
            so = (
                "is used nowhere; add it to fields or to ignored"
                if uses == 0
                else "must be one of: a field, ignored, the label's column"
            )
            mistakes.append(f"column {column} {so}")
    return mistakes


def _field_mistakes(recipe: Recipe) -> list[str]:
    """Fields that cannot be made, or cannot stand beside each other."""
    taken = [field for field in recipe.fields if field.casefold() == "label"]
    mistakes = [
        f"fields.{field}: that name is taken by the label itself; rename the column" for field in taken
    ]
    mistakes += [
        f"fields {other} and {field} differ in capitals only; rename one"
        for other, field in _same_but_for_capitals(list(recipe.fields))
    ]
    for name, field in recipe.fields.items():
        others = [other for other in recipe.fields if recipe.column(other) == recipe.column(name)]
        if len({isinstance(recipe.fields[other], Numeric) for other in others}) > 1 and name == others[0]:
            mistakes.append(
                f"fields.{name}: column {recipe.column(name)} is a number here and text in another field; make it one of them"
            )
        if isinstance(field, Numeric) and recipe.column(name) not in recipe.samples.columns:
            mistakes.append(f"fields.{name}: a number must be a column of samples, not of a side file")
        if isinstance(field, Categorical) and field.hash and recipe.max_rows_of(name) is None:
            mistakes.append(f"fields.{name}.hash: needs max_rows, the number of rows of its table")
    return mistakes


def _split_mistakes(recipe: Recipe) -> list[str]:
    """Files of the split that are no samples, and samples that are in no split."""
    split, files = recipe.split, recipe.samples.files
    mistakes = [
        f"samples.file: {file} is there twice" for file in sorted({f for f in files if files.count(f) > 1})
    ]
    if isinstance(split, RandomSplit):
        return mistakes
    for part, named in (("train", split.train), ("validation", split.validation), ("test", split.test)):
        mistakes += [
            f"split.{part}: {file} is no file of samples{_nearest(file, files)}"
            for file in named
            if file not in files
        ]
        mistakes += [
            f"split.{part}: {file} is there twice"
            for file in sorted({f for f in named if named.count(f) > 1})
        ]
    mistakes += [
        f"split.train: {file} is in validation or test too"
        for file in split.train
        if file in (*split.validation, *split.test)
    ]
    unused = [file for file in files if file not in (*split.train, *split.validation, *split.test)]
    return mistakes + [f"split: {file} is in none of train, validation, test" for file in unused]


def _same_but_for_capitals(columns: list[str]) -> list[tuple[str, str]]:
    return [(a, b) for a, b in combinations(dict.fromkeys(columns), 2) if a.casefold() == b.casefold()]


def _nearest(word: str, words: Any) -> str:
    near = get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def load_recipe(name: str) -> Recipe:
    """The recipe called `name` (a file <name>.toml of `dataset_folders`), or the one in the TOML file `name`.

    raises: DataError with every mistake of the file, or with the recipes that exist.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise DataError(
                f"{name}: no such recipe file\n  Give a TOML file that is there, or one of the names: {', '.join(recipe_names())}."
            )
        return _read(path)
    for folder in dataset_folders():
        path = folder / f"{name}.toml"
        if path.is_file():
            return _read(path)
    names = recipe_names()
    mend = f"Give {'one of: ' + ', '.join(names) + '; or ' if names else ''}the path of a TOML file."
    raise DataError(f"recipe {name!r}: there is none of that name{_nearest(name, names)}\n  {mend}")


def recipe_names() -> list[str]:
    """Names that `load_recipe` knows."""
    return sorted({path.stem for folder in dataset_folders() for path in folder.glob("*.toml")})


def dataset_folders() -> list[Path]:
    """Where the files of datasets/ may lie; of one name the first counts: where one stands, beside the package (a clone), where a wheel puts them."""
    user = sysconfig.get_preferred_scheme("user")
    installed = [
        Path(place) / "share" / "ham_dist"
        for place in (sysconfig.get_path("data"), sysconfig.get_path("data", user))
    ]
    return [folder / "datasets" for folder in (Path(), Path(ham_dist.__file__).parents[1], *installed)]


def _read(path: Path) -> Recipe:
    try:
        settings = parse_toml(read_bytes(path, limit=TOML_BYTES))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
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


_SHOWN_LETTERS = 80

# Keys of each part, for the suggestion beside an unknown key; the last part of a place that is no number or field name tells which part it is.
_PARTS: dict[str, type[RecipeSection]] = {
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


# What the patterns of names mean.
_PATTERNS = {
    NAME: "a field's name is letters, digits and _, with a letter first; a column with another name is given by"
    ' column = "..."',
    COLUMN_NAME: "a column's name has no control characters",
    RECIPE_NAME: "the name of a data set is letters, digits, dots, dashes and _, with a letter or digit first",
}


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}..."


def _explain(item: Any) -> str:
    """One mistake that pydantic found, as place, value and what was wanted."""
    place = [str(part) for part in item["loc"]]
    # A discriminated union puts the kind behind the field's name; it is not a key of the file.
    shown = ".".join(
        part for number, part in enumerate(place) if (number, place[0]) not in ((2, "fields"), (1, "split"))
    )
    if item["type"] == "extra_forbidden":
        part = next((_PARTS[name] for name in reversed(place[:-1]) if name in _PARTS), Recipe)
        keys = list(part.model_fields)
        return f"{shown}: unknown key{_nearest(place[-1], keys) or '; the keys here are ' + ', '.join(keys)}"
    if item["type"] == "missing":
        return f"{shown}: is missing; it must be given"
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
