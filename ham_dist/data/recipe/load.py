"""The recipe of a data set: loads datasets/<name>.toml and checks all of it before any row is read."""

import sysconfig
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

import ham_dist
from ham_dist.data.recipe.explain import explain, nearest
from ham_dist.data.recipe.fields import (
    RECIPE_NAME,
    AnyField,
    AnySplit,
    Categorical,
    ColumnName,
    Count,
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
)
from ham_dist.errors import DataError
from ham_dist.io.untrusted import TOML_BYTES, parse_toml, read_bytes

# Column names that the staged and encoded files use themselves.
_RESERVED = ("_row", "_label", "_cell", "_ids", "_key")


class Recipe(RecipeSection):
    """The recipe of a data set: its files, its label, its fields and its split."""

    name: Annotated[str, Field(pattern=RECIPE_NAME, max_length=150)]
    """Name of the data set."""
    source: Annotated[str, Field(min_length=1)]
    """Origin of the raw files. Shown when a raw file is missing."""
    min_count: Count = 1
    """Minimum count of a value in the training split. Rarer values become unknown (id 0)."""
    max_rows: TableRows | None = None
    """Maximum number of rows of a table, including row 0. The most frequent values get an id, the others
    become unknown (id 0)."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.0001
    """Maximum share of rejected lines in a file (0.0001 is 0.01 %). Above it, `prepare` fails."""
    format: Format
    samples: SampleFiles
    joins: tuple[Join, ...] = ()
    label: Label
    fields: Annotated[dict[Name, AnyField], Field(min_length=1)]
    """The model's fields, in order."""
    ignored: dict[ColumnName, str] = Field(default_factory=dict)
    """Columns that are not used, each with the reason."""
    split: AnySplit = RandomSplit(kind="random")
    """Split of the samples into train, validation and test."""

    @model_validator(mode="after")
    def _sections_agree(self) -> "Recipe":
        mistakes = [
            mistake
            for found in (_column_mistakes, _label_mistakes, _field_mistakes, _split_mistakes)
            for mistake in found(self)
        ]
        if mistakes:
            raise PydanticCustomError("columns", "{text}", {"text": "\n".join(mistakes)})
        return self

    def separators(self) -> dict[str, str | None]:
        """Separator of each field's values, in the order of fields; None for one value per sample."""
        return {
            name: field.separator if isinstance(field, MultiValued) else None
            for name, field in self.fields.items()
        }

    def column(self, field: str) -> str:
        """Name of the column that `field` is made from."""
        column = self.fields[field].column
        return field if column is None else column

    def min_count_of(self, field: str) -> int:
        """Minimum count in the training split for a value of `field` to get an id."""
        return self.fields[field].min_count or self.min_count

    def max_rows_of(self, field: str) -> int | None:
        """Maximum number of rows of the table of `field`; None if there is no limit."""
        return self.fields[field].max_rows or self.max_rows

    def is_hashed(self, field: str) -> bool:
        """True if `field` has no vocabulary."""
        settings = self.fields.get(field)
        return isinstance(settings, Categorical) and settings.hash

    def columns_of(self, fields: Iterable[str]) -> dict[str, str]:
        """Type of each column that `fields` are made from, and of the keys of side files.

        Returns:
            Column name -> `string`, or `float64` for a column of numbers.
        """
        kinds = {
            self.column(field): "float64" if isinstance(self.fields[field], Numeric) else "string"
            for field in fields
        }
        return {join.key: "string" for join in self.joins} | kinds


def _column_mistakes(recipe: Recipe) -> list[str]:
    """All mismatches between the columns of the files and the columns that the recipe uses."""
    mistakes: list[str] = []
    columns: list[str] = []
    parts: list[tuple[str, SampleFiles | Join]] = [
        ("samples", recipe.samples),
        *((f"joins.{number}", join) for number, join in enumerate(recipe.joins)),
    ]
    for where, part in parts:
        mistakes += [
            f"{where}.columns: {column} appears twice"
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
                    f"{where}.key = {part.key!r}: no earlier file has that column{nearest(part.key, columns)}"
                )
            fresh = [column for column in part.columns if column != part.key]
        mistakes += [
            f"{where}.columns: {column} is also a column of an earlier file; rename one"
            for column in fresh
            if column in columns
        ]
        columns += fresh
    # In DuckDB, User and user are the same column; on some file systems, they are the same file.
    mistakes += [
        f"columns {other} and {column} differ only in upper and lower case; rename one"
        for other, column in _differ_only_in_case(columns)
    ]
    if recipe.label.column not in recipe.samples.columns:
        mistakes.append(
            f"label.column = {recipe.label.column!r}: not a column of samples"
            f"{nearest(recipe.label.column, recipe.samples.columns)}"
        )
    for where, used in (
        ("fields", {field: recipe.column(field) for field in recipe.fields}),
        ("ignored", {column: column for column in recipe.ignored}),
    ):
        mistakes += [
            f"{where}.{name}: no file has that column{nearest(column, columns)}"
            for name, column in used.items()
            if column not in columns
        ]
    read = [recipe.column(field) for field in recipe.fields]
    mistakes += [
        f"columns: {column!r} cannot be the name of a column that is used; "
        'give it another name, and set format.header = "skip"'
        for column in dict.fromkeys([*read, recipe.label.column, *(join.key for join in recipe.joins)])
        if not column or column.casefold() in _RESERVED
    ]
    for column in columns:
        uses = (column in read) + (column in recipe.ignored) + (column == recipe.label.column)
        if uses != 1:
            problem = (
                "is not used; add it to fields or to ignored"
                if uses == 0
                else "must be only one of: a field, ignored, the label's column"
            )
            mistakes.append(f"column {column} {problem}")
    return mistakes


def _label_mistakes(recipe: Recipe) -> list[str]:
    """Strings of the label that no cell can have."""
    missing = {"", *recipe.format.null}
    return [
        f"label.{key} = {word!r}: means a missing value{' (format.null)' if word else ''}, so no label is "
        f"equal to it; remove it from label.{key}{' or from format.null' if word else ''}"
        for key, words in (("positive", recipe.label.positive), ("negative", recipe.label.negative))
        for word in words or ()
        if word in missing
    ]


def _field_mistakes(recipe: Recipe) -> list[str]:
    """Fields that cannot be made, or that conflict with each other."""
    taken = [field for field in recipe.fields if field.casefold() == "label"]
    mistakes = [f"fields.{field}: this name is reserved for the label; rename the field" for field in taken]
    mistakes += [
        f"fields {other} and {field} differ only in upper and lower case; rename one"
        for other, field in _differ_only_in_case(list(recipe.fields))
    ]
    for name, field in recipe.fields.items():
        others = [other for other in recipe.fields if recipe.column(other) == recipe.column(name)]
        if len({isinstance(recipe.fields[other], Numeric) for other in others}) > 1 and name == others[0]:
            mistakes.append(
                f"fields.{name}: column {recipe.column(name)} is a number here and text in another field; "
                "use the same type in both"
            )
        if isinstance(field, Numeric) and recipe.column(name) not in recipe.samples.columns:
            mistakes.append(f"fields.{name}: a numeric field needs a column of samples, not of a side file")
        if isinstance(field, Categorical) and field.hash and recipe.max_rows_of(name) is None:
            mistakes.append(f"fields.{name}.hash: needs max_rows, the hash bucket size")
    return mistakes


def _split_mistakes(recipe: Recipe) -> list[str]:
    """Files of the split that are not sample files, and sample files that are in no split."""
    split, files = recipe.split, recipe.samples.files
    mistakes = [
        f"samples.file: {file} appears twice" for file in sorted({f for f in files if files.count(f) > 1})
    ]
    if isinstance(split, RandomSplit):
        return mistakes
    for part, named in (("train", split.train), ("validation", split.validation), ("test", split.test)):
        mistakes += [
            f"split.{part}: {file} is not in samples.file{nearest(file, files)}"
            for file in named
            if file not in files
        ]
        mistakes += [
            f"split.{part}: {file} appears twice" for file in sorted({f for f in named if named.count(f) > 1})
        ]
    mistakes += [
        f"split.train: {file} is also in validation or test"
        for file in split.train
        if file in (*split.validation, *split.test)
    ]
    unused = [file for file in files if file not in (*split.train, *split.validation, *split.test)]
    return mistakes + [f"split: {file} is not in train, validation or test" for file in unused]


def _differ_only_in_case(columns: list[str]) -> list[tuple[str, str]]:
    return [(a, b) for a, b in combinations(dict.fromkeys(columns), 2) if a.casefold() == b.casefold()]


def load_recipe(name: str) -> Recipe:
    """Loads a recipe by name or from a TOML file.

    Args:
        name: Name of a recipe (a file <name>.toml in one of `dataset_folders`), or the path of a TOML file.
    Raises:
        DataError: There is no such recipe (the message lists those that exist), or the file has mistakes (the
            message lists all of them).
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise DataError(
                f"{name}: no such recipe file\n"
                f"  Give an existing TOML file, or one of the names: {', '.join(recipe_names())}."
            )
        return _read(path)
    for folder in dataset_folders():
        path = folder / f"{name}.toml"
        if path.is_file():
            return _read(path)
    names = recipe_names()
    fix = f"Give {'one of: ' + ', '.join(names) + '; or ' if names else ''}the path of a TOML file."
    raise DataError(f"recipe {name!r}: no recipe has that name{nearest(name, names)}\n  {fix}")


def recipe_names() -> list[str]:
    """Names of all recipes that `load_recipe` finds."""
    return sorted({path.stem for folder in dataset_folders() for path in folder.glob("*.toml")})


def dataset_folders() -> list[Path]:
    """Folders that are searched for recipes, in order; the first file of a name is used.

    These are datasets/ in the working directory, next to the package (in a clone), and where a wheel installs
    it.
    """
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
        raise DataError(f"{path}: is not TOML: {error}") from None
    return parse_recipe(settings, where=str(path))


def parse_recipe(settings: dict[str, Any], where: str) -> Recipe:
    """Checks the settings of a recipe and returns the recipe.

    Args:
        settings: Content of a TOML file, or of the recipe in a manifest.
        where: Name of that file for messages.
    Raises:
        DataError: The settings have mistakes; the message lists all of them, one per line.
    """
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        mistakes = [
            line for item in error.errors(include_url=False) for line in explain(item, Recipe).splitlines()
        ]
        raise DataError("\n".join(f"{where}: {mistake}" for mistake in mistakes)) from None
