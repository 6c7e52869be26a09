"""The sections of a recipe: text format, files and columns, label, kinds of fields, split."""

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ham_dist.io.untrusted import relative_name

# A field name is also a key of a KeyedJaggedTensor, part of a parameter name (so no dots) and a file name.
NAME = r"^[A-Za-z][A-Za-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=150)]
# Any text that fits in one line of a file. Only an ignored column may have the empty name.
RECIPE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
COLUMN_NAME = r"^[^\x00-\x1f\x7f]*$"
ColumnName = Annotated[str, Field(pattern=COLUMN_NAME, max_length=1000)]
Separator = Annotated[str, Field(min_length=1, max_length=4)]
FileName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(relative_name)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
# Ids are int32.
TableRows = Annotated[int, Field(ge=2, lt=2**31)]


class RecipeSection(BaseModel):
    """Base class of the sections of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
    # Keys that are left out when they have their default value, so that the manifests of older versions,
    # which lack these keys, stay equal.
    OMITTED: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        for name in self.OMITTED:
            if getattr(self, name) == type(self).model_fields[name].default:
                written.pop(name, None)
        return written


class Format(RecipeSection):
    """Format of the raw text files."""

    separator: Separator
    """Column separator, one to four characters."""
    header: Literal[True, False, "skip"] = False
    """true: the first line is a header and must have the recipe's column names.
    "skip": the first line is a header and is ignored. false: there is no header."""
    quote: Literal["", '"'] = ""
    """Quote character. A value that contains the separator is enclosed in quotes, and a quote inside it is
    doubled. Empty: a quote is an ordinary character."""
    encoding: Literal["utf-8", "latin-1", "utf-16"] = "utf-8"
    """Character encoding of the text."""
    null: tuple[str, ...] = ()
    """Strings that mean a missing value. An empty cell is always a missing value."""
    max_line_bytes: Annotated[int, Field(ge=1, le=1 << 24)] = 1 << 20
    """Maximum length of a line in bytes. Longer lines are rejected."""

    @property
    def header_lines(self) -> int:
        """Number of lines before the first sample."""
        return 1 if self.header else 0

    @model_validator(mode="after")
    def _one_reading(self) -> "Format":
        if self.quote and (len(self.separator) > 1 or self.separator == self.quote):
            raise PydanticCustomError(
                "format", "with a quote, the separator must be one character other than the quote"
            )
        if any(letter in self.separator for letter in "\r\n\0\x1f") or not self.separator.isascii():
            raise PydanticCustomError(
                "format",
                "the separator must be ASCII, without line ends, NUL or the character 0x1f",
            )
        return self


class SampleFiles(RecipeSection):
    """The files that hold the samples, one per line."""

    file: FileName | Annotated[tuple[FileName, ...], Field(min_length=1)]
    """File name in the raw folder, or several names in order. A compressed file of that name plus .gz, .bz2
    or .zst is also accepted."""
    columns: Annotated[tuple[ColumnName, ...], Field(min_length=1)]
    """Names of the columns, left to right. Any text is allowed."""

    @property
    def files(self) -> tuple[str, ...]:
        """The file names as a tuple."""
        return (self.file,) if isinstance(self.file, str) else self.file


class Join(RecipeSection):
    """A side file with one line per key. Its other columns are joined to each sample with that key."""

    file: FileName
    """File name in the raw folder, as in `samples.file`."""
    columns: Annotated[tuple[ColumnName, ...], Field(min_length=1)]
    """Names of the columns, left to right. Any text is allowed."""
    key: ColumnName
    """Join key: a column of this file that the samples, or an earlier side file, also have."""


class Label(RecipeSection):
    """The rule that makes a sample positive or negative, by numbers or by strings.

    Samples that are neither are dropped and counted.
    """

    OMITTED = ("positive", "negative")

    column: ColumnName
    """A column of the sample files."""
    positive_above: float | None = None
    """A sample is positive if the column is a number greater than this. `true` counts as 1, `false` as 0."""
    negative_below: float | None = None
    """A sample is negative if the column is a number less than this."""
    positive: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """A sample is positive if the column is one of these strings. Used instead of the two numbers."""
    negative: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """A sample is negative if the column is one of these strings."""

    @property
    def kind(self) -> Literal["string", "float64"]:
        """Type that the column is read as."""
        return "float64" if self.positive is None else "string"

    @model_validator(mode="after")
    def _one_rule(self) -> "Label":
        above, below = self.positive_above, self.negative_below
        given = tuple(one is not None for one in (above, below, self.positive, self.negative))
        if given == (False, False, True, True):
            if both := sorted({*(self.positive or ())} & {*(self.negative or ())}):
                raise PydanticCustomError(
                    "label", "{word} is in both positive and negative", {"word": repr(both[0])}
                )
        elif given != (True, True, False, False):
            raise PydanticCustomError(
                "label",
                "give positive_above and negative_below (numbers), "
                "or positive and negative (lists of strings)",
            )
        elif above is not None and below is not None and below > above:
            raise PydanticCustomError(
                "label",
                "negative_below = {below} is above positive_above = {above}: "
                "numbers between them would be both positive and negative",
                {"below": below, "above": above},
            )  # fmt: skip
        return self


class _Field(RecipeSection):
    column: ColumnName | None = None
    """Column that the field is made from (default: the column with the field's name)."""
    min_count: Count | None = None
    """`min_count` of this field (default: the recipe's)."""
    max_rows: TableRows | None = None
    """`max_rows` of this field (default: the recipe's)."""


class Categorical(_Field):
    """A field with one value per sample."""

    kind: Literal["categorical"]
    missing: Literal["unknown", "own"] = "unknown"
    """"unknown": a missing value has id 0. "own": a missing value is counted and gets an id like any other
    value."""
    hash: bool = False
    """true: the id is a hash of the value, in 1 ... max_rows - 1 (`max_rows` is the hash bucket size). There
    is no vocabulary and nothing is counted; values that collide share a row."""


# Limit of `buckets` and `boundaries`: all boundaries of a field become one expression.
MOST_BUCKETS = 1024


class Numeric(_Field):
    """A field with one number z per sample, discretized to integers that each get an id.

    A missing number is a value of its own. `log_square` fits counts, as in the paper. It maps all numbers
    between 0 and 1 to one value, and large numbers that are close together to few values: for shares, rates
    and times use `quantile`, or `log` with a scale.

    Source: `log_square` is the transform of the winner of the Criteo Kaggle challenge (HAM paper, section
    4.1).
    """

    OMITTED = ("transform", "scale", "buckets", "boundaries")

    kind: Literal["numeric"]
    transform: Literal["log_square", "log", "quantile"] = "log_square"
    """log_square: floor(ln(z)^2) if z > 2, else int(z) - 2. log: floor(scale * ln(1 + |z|)), with the sign of
    z. quantile: the number of boundaries that are less than or equal to z."""
    scale: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    """For `log`: resolution. Numbers get different values if they differ by 1 / scale (near 0), or if their
    ratio is e^(1 / scale) (far from 0)."""
    buckets: Annotated[int, Field(ge=2, le=MOST_BUCKETS)] = 32
    """For `quantile`: maximum number of buckets. Each gets about the same number of training samples."""
    boundaries: Annotated[tuple[float, ...], Field(max_length=MOST_BUCKETS - 1)] | None = None
    """For `quantile`: lower bounds of all buckets but the first, in ascending order (default: `prepare`
    computes the quantiles of the training split and stores them in the recipe in manifest.json, so that
    scoring uses the same boundaries)."""

    @model_validator(mode="after")
    def _fits_transform(self) -> "Numeric":
        for key, transform in (("scale", "log"), ("buckets", "quantile"), ("boundaries", "quantile")):
            if (
                key in self.model_fields_set
                and self.transform != transform
                and getattr(self, key) is not None
            ):
                raise PydanticCustomError(
                    "numeric",
                    '{key} can only be used with transform = "{transform}"',
                    {"key": key, "transform": transform},
                )
        bounds = self.boundaries or ()
        if any(low >= high for low, high in pairwise(bounds)):
            raise PydanticCustomError("numeric", "boundaries must be in ascending order")
        if "buckets" in self.model_fields_set and len(bounds) >= self.buckets:
            raise PydanticCustomError(
                "numeric", "{count} boundaries make more than {buckets} buckets",
                {"count": len(bounds), "buckets": self.buckets},
            )  # fmt: skip
        return self


TIME_LAYOUTS = {
    "YYMMDDHH": "digits; YY = 14 is the year 2014",
    "YYYYMMDDHH": "digits",
    "epoch_seconds": "seconds since 1970, in UTC",
    "epoch_milliseconds": "milliseconds since 1970, in UTC",
    "iso_8601": "such as 2017-12-01T04:23:32Z; the time zone is not applied",
}
FIRST_YEAR, LAST_YEAR = 1980, 2100
"""Plausible years. Starting at 1980 rejects zeros, and seconds read as milliseconds (all in 1970)."""


class Time(_Field):
    """A field with one part of a time.

    A time that is not in the layout, or not in the years 1980 to 2100, is unknown (id 0) and counted.
    """

    kind: Literal["time"]
    layout: Literal["YYMMDDHH", "YYYYMMDDHH", "epoch_seconds", "epoch_milliseconds", "iso_8601"]
    """Layout of the time in the file; see TIME_LAYOUTS."""
    part: Literal["hour", "weekday"]
    """Hour of the day (00 to 23), or day of the week (0 for Monday, 6 for Sunday)."""


class MultiValued(_Field):
    """A field with any number of values per sample, all in one column."""

    kind: Literal["multi_valued"]
    separator: Separator
    """Separator between two values."""


AnyField = Annotated[Categorical | Numeric | Time | MultiValued, Field(discriminator="kind")]


class RandomSplit(RecipeSection):
    """Random split into 80 % training, 10 % validation and 10 % test, by a hash of the line's position and
    the seed."""

    kind: Literal["random"]


class FileSplit(RecipeSection):
    """Split by whole files.

    A file that is in both validation and test is cut in the middle: the first half of its lines is
    validation, the rest is test.
    """

    kind: Literal["files"]
    train: Annotated[tuple[FileName, ...], Field(min_length=1)]
    validation: Annotated[tuple[FileName, ...], Field(min_length=1)]
    test: Annotated[tuple[FileName, ...], Field(min_length=1)]


AnySplit = Annotated[RandomSplit | FileSplit, Field(discriminator="kind")]
