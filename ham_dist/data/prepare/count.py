"""The pass that counts: vocabularies, boundaries of numbers and checks, from the training split."""

import logging
from collections.abc import Mapping
from typing import Any

import ibis

from ham_dist.data.encode.expressions import CELL, Sides, cells_of, counts_of, valued, vocabulary_of
from ham_dist.data.encode.transforms import quantiles
from ham_dist.data.engines.base import Engine
from ham_dist.data.format.manifest import Checks, DataField, NumberCheck, StoredFile, TimeCheck
from ham_dist.data.format.shards import VOCABULARY_SCHEMA, write_shard
from ham_dist.data.prepare.stage import StagedSplit
from ham_dist.data.prepare.workdir import Work
from ham_dist.data.recipe.fields import (
    FIRST_YEAR,
    LAST_YEAR,
    TIME_LAYOUTS,
    AnyField,
    Categorical,
    Numeric,
    Time,
)
from ham_dist.data.recipe.load import Recipe
from ham_dist.errors import DataError
from ham_dist.io.printable import shown
from ham_dist.io.progress import progress

log = logging.getLogger(__name__)

# Minimum share of the times that another layout must fit to be suggested.
_FITS = 0.5


class Counting:
    """Counts the values of each field of `recipe` and writes its vocabulary into `work`.

    Only training samples are counted. A value that does not occur in training has no trained row, so it is
    unknown (id 0) in the other splits, and nothing of the validation and test samples leaks into the model.

    Attributes:
        fields: The recipe's fields, with the boundaries that were found.
        checks: Checks of all fields counted so far.
    """

    def __init__(self, recipe: Recipe, work: Work, engine: Engine) -> None:
        self._recipe, self._work, self._engine = recipe, work, engine
        self.fields: dict[str, AnyField] = dict(recipe.fields)
        self._numbers: dict[str, NumberCheck] = {}
        self._times: dict[str, TimeCheck] = {}

    @property
    def checks(self) -> Checks:
        return Checks(numbers=self._numbers, times=self._times)

    def count(self, train: StagedSplit, sides: Sides) -> list[DataField]:
        """Counts all fields that are not finished.

        Args:
            train: Staged rows of the training split.
            sides: The side tables that the samples are joined with.
        Returns:
            Manifest entries of the fields, in order.
        Raises:
            DataError: A field has no value that is frequent enough, or no time in its layout.
        """
        entries = []
        samples = self._engine.read_parquet(train.paths)
        with progress("counting", len(self._recipe.fields) * train.rows, log.info) as step:
            for name in self._recipe.fields:
                record = self._work.record(f"vocabulary/{name}")
                finished = record is not None
                if record is None:
                    record = self._write(name, cells_of(samples, sides, self._recipe.column(name)))
                    self._work.done(f"vocabulary/{name}", record)
                entries.append(self._take(name, record))
                step(train.rows, 0 if finished else train.rows)
        return entries

    def _write(self, name: str, cells: ibis.Table) -> dict[str, Any]:
        """Write the vocabulary of a field, and return its record."""
        field, found = self._recipe.fields[name], {}
        if isinstance(field, Numeric | Time):
            cells = self._engine.keep(counts_of(cells))
        if isinstance(field, Numeric):
            if field.transform == "quantile" and field.boundaries is None:
                table = self._engine.query(quantiles(cells, CELL, field.buckets))()
                found["boundaries"] = table["boundary"].to_pylist()
                field = _with(field, found)
            found["numbers"] = self._row(_number_check(cells, field))
        elif isinstance(field, Time):
            found["times"] = self._row(_time_check(cells, field))
            self._refuse_no_times(name, field, cells, TimeCheck(**found["times"]))
        batches: Any = []
        if not is_hashed(field):
            least, most = self._recipe.min_count_of(name), self._recipe.max_rows_of(name)
            batches = self._engine.batches(vocabulary_of(cells, field, least, most))
        stored, _ = write_shard(self._work.data, f"vocabulary/{name}.parquet", batches, VOCABULARY_SCHEMA)
        return {"stored": stored.model_dump()} | found

    def _row(self, aggregated: ibis.Table) -> dict[str, Any]:
        row: dict[str, Any] = self._engine.query(aggregated)().to_pylist()[0]
        # The sum of no rows is null. DuckDB's sums of int64 have 128 bits and are returned as decimals.
        return {key: value if key == "example" else int(value or 0) for key, value in row.items()}

    def _take(self, name: str, record: Mapping[str, Any]) -> DataField:
        field = self.fields[name] = _with(self.fields[name], record)
        if "numbers" in record:
            self._numbers[name] = NumberCheck(**record["numbers"])
        if "times" in record:
            self._times[name] = TimeCheck(**record["times"])
        stored = StoredFile(**record["stored"])
        if stored.rows == 0 and not is_hashed(field):
            least = self._recipe.min_count_of(name)
            raise DataError(
                f"field {name}: none of its values occurs {least} {'time' if least == 1 else 'times'} or more"
                " in the training split, so all would be unknown\n"
                "  Check that the side files have the samples' keys, and the recipe's min_count."
            )
        rows = self._recipe.max_rows_of(name) if is_hashed(field) else stored.rows + 1
        return DataField(
            name=name, rows=rows, multi_valued=self._recipe.separators()[name] is not None, vocabulary=stored
        )

    def _refuse_no_times(self, name: str, field: Time, counted: ibis.Table, check: TimeCheck) -> None:
        if check.unknown < check.samples or not check.samples:
            return
        fits = {
            layout: TimeCheck(**self._row(_time_check(counted, field.model_copy(update={"layout": layout}))))
            for layout in TIME_LAYOUTS
        }
        best = min(fits, key=lambda layout: fits[layout].unknown)
        fix = (
            f'Set layout = "{best}" ({TIME_LAYOUTS[best]}), which fits'
            if fits[best].unknown <= (1 - _FITS) * check.samples
            else f"Set one of the layouts {', '.join(TIME_LAYOUTS)}, make it a categorical field, or ignore"
            " the column"
        )
        raise DataError(
            f"field {name}: none of its {check.samples:,} times is {field.layout}"
            f" ({TIME_LAYOUTS[field.layout]}) within the years {FIRST_YEAR} to {LAST_YEAR}, such as"
            f" {shown(check.example or '')}, so all would be unknown\n  {fix}."
        )


def is_hashed(field: AnyField) -> bool:
    """True for a field with hashed ids, which needs no vocabulary."""
    return isinstance(field, Categorical) and field.hash


def _with(field: AnyField, record: Mapping[str, Any]) -> AnyField:
    """`field` with the boundaries in `record`, if there are any."""
    if "boundaries" not in record:
        return field
    return field.model_copy(update={"boundaries": tuple(record["boundaries"])})


def _number_check(counted: ibis.Table, field: AnyField) -> ibis.Table:
    """Table of one row with the columns of NumberCheck."""
    known = valued(counted.filter(counted[CELL].notnull()), field)
    by_id = known.group_by("value").aggregate(
        samples=known["count"].sum(), numbers=known.count(), most=known["count"].max()
    )
    return by_id.aggregate(
        samples=by_id.samples.sum(),
        numbers=by_id.numbers.sum(),
        ids=by_id.count(),
        most_frequent_number=by_id.most.max(),
        most_frequent_id=by_id.samples.max(),
    )


def _time_check(counted: ibis.Table, field: AnyField) -> ibis.Table:
    """Table of one row with the columns of TimeCheck."""
    known = valued(counted.filter(counted[CELL].notnull()), field)
    unknown = known.value.isnull()
    return known.aggregate(
        samples=known["count"].sum(),
        unknown=known["count"].sum(where=unknown),
        example=known[CELL].min(where=unknown),
    )
