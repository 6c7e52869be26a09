"""The parts that a recipe is made of: how the text is written, its files and columns, the label, the kinds of fields, the split."""

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

# Field names become keys of a KeyedJaggedTensor, parts of parameter names (no dots) and file names.
NAME = r"^[A-Za-z][A-Za-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=150)]
# Any text that a line of a file can hold. The empty name is for columns that are ignored.
COLUMN_NAME = r"^[^\x00-\x1f\x7f]*$"
ColumnName = Annotated[str, Field(pattern=COLUMN_NAME, max_length=1000)]
Separator = Annotated[str, Field(min_length=1, max_length=4)]
FileName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(relative_name)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
# int32 ids.
TableRows = Annotated[int, Field(ge=2, lt=2**31)]


class RecipeSection(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
    # Written only where they differ from their defaults: manifests written before these keys existed then stay equal.
    OMITTED: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        for name in self.OMITTED:
            if getattr(self, name) == type(self).model_fields[name].default:
                written.pop(name, None)
        return written


class Format(RecipeSection):
    """How the raw text files are written."""

    separator: Separator
    """Between two columns: one to four characters."""
    header: Literal[True, False, "skip"] = False
    """true: the first line names the columns, and must name the recipe's. "skip": it is a header that is not looked at. false: there is none."""
    quote: Literal["", '"'] = ""
    """What can stand around a value that holds the separator (and twice within it for itself); empty: a quote is a letter like any other."""
    encoding: Literal["utf-8", "latin-1", "utf-16"] = "utf-8"
    """Of the text."""
    null: tuple[str, ...] = ()
    """Words that mean a missing value; an empty cell always does."""
    max_line_bytes: Annotated[int, Field(ge=1, le=1 << 24)] = 1 << 20
    """A longer line is rejected."""

    @property
    def header_lines(self) -> int:
        """Lines before the first sample."""
        return 1 if self.header else 0

    @model_validator(mode="after")
    def _one_reading(self) -> "Format":
        if self.quote and (len(self.separator) > 1 or self.separator == self.quote):
            raise PydanticCustomError(
                "format", "a quote needs a separator of one character that is another one"
            )
        if any(letter in self.separator for letter in "\r\n\0\x1f") or not self.separator.isascii():
            raise PydanticCustomError(
                "format",
                "the separator must be of ASCII, without line ends and control characters but the tab",
            )
        return self


class SampleFiles(RecipeSection):
    """The files whose lines are the samples."""

    file: FileName | Annotated[tuple[FileName, ...], Field(min_length=1)]
    """Name in the raw folder, or names in order; the same name with .gz, .bz2 or .zst behind it is taken as well."""
    columns: Annotated[tuple[ColumnName, ...], Field(min_length=1)]
    """Names of its columns, left to right: any text."""

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,) if isinstance(self.file, str) else self.file


class Join(RecipeSection):
    """A side file: one line a key, whose other columns are added to each sample with that key."""

    file: FileName
    """Name in the raw folder, as for the samples."""
    columns: Annotated[tuple[ColumnName, ...], Field(min_length=1)]
    """Names of its columns, left to right: any text."""
    key: ColumnName
    """Column that both the samples (or an earlier side file) and this file have."""


class Label(RecipeSection):
    """Which samples are positive and which negative, by numbers or by words; the others are dropped and counted."""

    OMITTED = ("positive", "negative")

    column: ColumnName
    """A column of the samples file."""
    positive_above: float | None = None
    """Positive where the column is a number greater than this. `true` and `false` count as 1 and 0."""
    negative_below: float | None = None
    """Negative where the column is a number less than this."""
    positive: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Positive where the column is one of these words, in place of the numbers."""
    negative: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Negative where the column is one of these words."""

    @property
    def kind(self) -> Literal["string", "float64"]:
        """The kind of the column's cells."""
        return "float64" if self.positive is None else "string"

    @model_validator(mode="after")
    def _one_rule(self) -> "Label":
        above, below = self.positive_above, self.negative_below
        given = tuple(one is not None for one in (above, below, self.positive, self.negative))
        if given == (False, False, True, True):
            if both := sorted({*(self.positive or ())} & {*(self.negative or ())}):
                raise PydanticCustomError(
                    "label", "{word} is in positive and in negative", {"word": repr(both[0])}
                )
        elif given != (True, True, False, False):
            raise PydanticCustomError(
                "label",
                "give positive_above and negative_below (numbers), or positive and negative (lists of words)",
            )
        elif above is not None and below is not None and below > above:
            raise PydanticCustomError(
                "label", "negative_below = {below} is above positive_above = {above}: numbers between them would be both",
                {"below": below, "above": above},
            )  # fmt: skip
        return self


class _Field(RecipeSection):
    column: ColumnName | None = None
    """The column that it is made from; left out where the field is called as its column."""
    min_count: Count | None = None
    """Over the recipe's."""
    max_rows: TableRows | None = None
    """Over the recipe's."""


class Categorical(_Field):
    """One value a sample."""

    kind: Literal["categorical"]
    missing: Literal["unknown", "own"] = "unknown"
    """Whether a missing value is unknown (id 0) or a value of its own, counted like the others."""
    hash: bool = False
    """Ids are a hash of the value into 1 ... max_rows - 1, without a vocabulary: nothing is counted or kept, and values share rows."""


# Of all boundaries of a field, as they become one expression.
MOST_BUCKETS = 1024


class Numeric(_Field):
    """A number z a sample, cut into whole values, each with an id; a missing number is a value of its own.

    `log_square` suits counts, as in the paper. It makes one value of all numbers between 0 and 1, and few values of large
    numbers that are close together: for shares, rates and times take `quantile`, or `log` with a scale.
    Source: `log_square` is the winner's transform of the Criteo Kaggle challenge, as in the HAM paper's section 4.1.
    """

    OMITTED = ("transform", "scale", "buckets", "boundaries")

    kind: Literal["numeric"]
    transform: Literal["log_square", "log", "quantile"] = "log_square"
    """log_square: floor(ln(z)^2) where z > 2, int(z) - 2 elsewhere. log: floor(scale * ln(1 + |z|)), with the sign of z.
    quantile: the number of boundaries that are not above z."""
    scale: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    """For `log`: near 0, numbers that are 1 / scale apart get different values; far from 0, numbers whose ratio is e^(1 / scale)."""
    buckets: Annotated[int, Field(ge=2, le=MOST_BUCKETS)] = 32
    """For `quantile`: the most values, each with about the same number of training samples."""
    boundaries: Annotated[tuple[float, ...], Field(max_length=MOST_BUCKETS - 1)] | None = None
    """For `quantile`: where buckets begin, in ascending order. Left out, `prepare` takes the quantiles of the training split and
    keeps them in the recipe of manifest.json, so that scoring cuts at the same numbers."""

    @model_validator(mode="after")
    def _fits_transform(self) -> "Numeric":
        for key, transform in (("scale", "log"), ("buckets", "quantile"), ("boundaries", "quantile")):
            if (
                key in self.model_fields_set
                and self.transform != transform
                and getattr(self, key) is not None
            ):
                raise PydanticCustomError(
                    "numeric", '{key} is for transform = "{transform}"', {"key": key, "transform": transform}
                )
        bounds = self.boundaries or ()
        if any(low >= high for low, high in pairwise(bounds)):
            raise PydanticCustomError("numeric", "boundaries must ascend")
        if "buckets" in self.model_fields_set and len(bounds) >= self.buckets:
            raise PydanticCustomError(
                "numeric", "{count} boundaries make more than {buckets} buckets",
                {"count": len(bounds), "buckets": self.buckets},
            )  # fmt: skip
        return self


TIME_LAYOUTS = {
    "YYMMDDHH": "digits, the year after 2000",
    "YYYYMMDDHH": "digits",
    "epoch_seconds": "seconds since 1970, in UTC",
    "epoch_milliseconds": "milliseconds since 1970, in UTC",
    "iso_8601": "as in 2017-12-01T04:23:32Z; a time zone is not applied",
}
FIRST_YEAR, LAST_YEAR = 1980, 2100
"""Years of times that are taken. 1980 keeps seconds that are read as milliseconds (all within 1970) and zeros out."""


class Time(_Field):
    """A part of a time. A time that is not written in the layout, or is not in the years 1980 to 2100, is unknown (id 0) and counted."""

    kind: Literal["time"]
    layout: Literal["YYMMDDHH", "YYYYMMDDHH", "epoch_seconds", "epoch_milliseconds", "iso_8601"]
    """The way the time is written, as in TIME_LAYOUTS."""
    part: Literal["hour", "weekday"]
    """The hour of the day (00 to 23), or the day of the week (0 for Monday to 6)."""


class MultiValued(_Field):
    """Any number of values a sample, in one column."""

    kind: Literal["multi_valued"]
    separator: Separator
    """Between two values."""


AnyField = Annotated[Categorical | Numeric | Time | MultiValued, Field(discriminator="kind")]


class RandomSplit(RecipeSection):
    """80, 10 and 10 % of the samples, by a hash of the line's position and the seed."""

    kind: Literal["random"]


class FileSplit(RecipeSection):
    """Whole files. One that is in both validation and test is cut in the middle: the first half of its lines is validation, the rest test."""

    kind: Literal["files"]
    train: Annotated[tuple[FileName, ...], Field(min_length=1)]
    validation: Annotated[tuple[FileName, ...], Field(min_length=1)]
    test: Annotated[tuple[FileName, ...], Field(min_length=1)]


AnySplit = Annotated[RandomSplit | FileSplit, Field(discriminator="kind")]
