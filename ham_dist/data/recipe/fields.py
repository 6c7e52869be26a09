"""The parts that a recipe is made of: how the text is written, its files and columns, the label, the kinds of fields, the split."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

# Field names become keys of a KeyedJaggedTensor, parts of parameter names (no dots) and file names.
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Separator = Annotated[str, Field(min_length=1, max_length=4)]
FileName = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
# int32 ids.
TableRows = Annotated[int, Field(ge=2, lt=2**31)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Format(Part):
    """How the raw text files are written."""

    separator: Separator
    """Between two columns: one to four characters."""
    header: bool = False
    """Whether the first line names the columns; the names are then checked against the recipe's."""
    quote: Literal["", '"'] = ""
    """What can stand around a value that holds the separator (and twice within it for itself); empty: a quote is a letter like any other."""
    encoding: Literal["utf-8", "latin-1", "utf-16"] = "utf-8"
    """Of the text."""
    null: tuple[str, ...] = ()
    """Words that mean a missing value; an empty cell always does."""
    max_line_bytes: Annotated[int, Field(ge=1, le=1 << 24)] = 1 << 20
    """A longer line is rejected."""

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


class Samples(Part):
    """The files whose lines are the samples."""

    file: FileName | Annotated[tuple[FileName, ...], Field(min_length=1)]
    """Name in the raw folder, or names in order; the same name with .gz, .bz2 or .zst behind it is taken as well."""
    columns: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Names of its columns, left to right."""

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,) if isinstance(self.file, str) else self.file


class Join(Part):
    """A side file: one line a key, whose other columns are added to each sample with that key."""

    file: FileName
    """Name in the raw folder, as for the samples."""
    columns: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Names of its columns, left to right."""
    key: Name
    """Column that both the samples (or an earlier side file) and this file have."""


class Label(Part):
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


class _Field(Part):
    column: Name | None = None
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


class Numeric(_Field):
    """A number z a sample, cut into whole values: floor(ln(z)^2) where z > 2, int(z) - 2 elsewhere; a missing number is a value of its own.

    source: the winner's transform of the Criteo Kaggle challenge, as in the HAM paper's section 4.1.
    """

    kind: Literal["numeric"]


class Time(_Field):
    """A part of a time that is written in digits."""

    kind: Literal["time"]
    layout: Annotated[str, Field(pattern=r"^(YYYY|YY)MMDDHH$")]
    """How it is written: YYMMDDHH or YYYYMMDDHH."""
    part: Literal["hour", "weekday"]
    """The hour of the day (00 to 23), or the day of the week (0 for Monday to 6)."""


class MultiValued(_Field):
    """Any number of values a sample, in one column."""

    kind: Literal["multi_valued"]
    separator: Separator
    """Between two values."""


AnyField = Annotated[Categorical | Numeric | Time | MultiValued, Field(discriminator="kind")]


class RandomSplit(Part):
    """80, 10 and 10 % of the samples, by a hash of the line's position and the seed."""

    kind: Literal["random"]


class FileSplit(Part):
    """Whole files. One that is in both validation and test is cut in the middle: the first half of its lines is validation, the rest test."""

    kind: Literal["files"]
    train: Annotated[tuple[FileName, ...], Field(min_length=1)]
    validation: Annotated[tuple[FileName, ...], Field(min_length=1)]
    test: Annotated[tuple[FileName, ...], Field(min_length=1)]


AnySplit = Annotated[RandomSplit | FileSplit, Field(discriminator="kind")]
