"""Labelled records that a user names, for runs whose data is gone."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ham_dist.data.format.shards import LABEL
from ham_dist.data.recipe.fields import Label
from ham_dist.errors import DataError
from ham_dist.export.bundle import Bundle
from ham_dist.export.compact import Ids
from ham_dist.export.prepared import bundle_recipe, data_folder
from ham_dist.export.quality import MEASURED_ROWS, Labelled, LabelledIds
from ham_dist.export.records import read_records
from ham_dist.io.paths import local_path

BLOCK_ROWS = 16_384
"""Records that are scored at once."""


def labelled_records(bundle: Bundle, source: str) -> Labelled:
    """Returns the first MEASURED_ROWS records of `source` with the bundle's logits.

    Args:
        bundle: The bundle of the run, which stands for the live model.
        source: Prepared data of a split other than test, or raw records with the label of the recipe; records
            that are neither positive nor negative by its rule are left out. Without a recipe: Parquet with
            ids and a column `label` of 0 and 1.
    Raises:
        DataError: The records cannot be read, have no label, or are a test split.
    """
    model = bundle.model()
    fields = [field for field in bundle.manifest.fields if field.name in set(model.read_fields)]
    recipe, rule = bundle_recipe(bundle), None
    if not _is_prepared(source) and recipe is not None:
        rule = recipe.label
    column = LABEL if rule is None else rule.column

    def batches() -> Iterator[LabelledIds]:
        count = 0
        for block in read_records(bundle, source, fields, "auto", BLOCK_ROWS, column):
            assert block.carried is not None, "a column was named"
            labels, known = _labels(source, block.carried, rule)
            if not known.any():
                continue
            rows = np.flatnonzero(known)[: MEASURED_ROWS - count]
            yield _rows(block.ids, torch.from_numpy(rows)), torch.from_numpy(labels[rows])
            count += len(rows)
            if count == MEASURED_ROWS:
                return

    with torch.inference_mode():
        logits = [model(ids) for ids, _ in batches()]
    return Labelled(source, batches, torch.cat(logits) if logits else torch.empty(0))


def _is_prepared(source: str) -> bool:
    """Returns True for a split of prepared data."""
    path = local_path(source)
    shards = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not shards or data_folder(shards[0]) is None:
        return False
    if shards[0].parent.name == "test":
        raise DataError(
            f"{source}: is a test split, by which nothing may be chosen; expected validation records\n"
            f"  Give {shards[0].parent.with_name('validation')}."
        )
    return True


def _labels(
    source: str, cells: pa.Array, rule: Label | None
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float32]], np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Labels, and a mask of the records that have one."""
    if rule is None:
        labels = np.asarray(pc.fill_null(pc.cast(cells, pa.float32(), safe=False), np.nan))
        if not np.isin(labels, (0, 1)).all():
            raise DataError(f"{source}: column {LABEL} has other values than 0 and 1\n  Give labels 0 and 1.")
        return labels, np.ones(len(labels), dtype=bool)
    # Loads DuckDB, which prepared data does not need.
    from ham_dist.data.prepare.stage import label_masks

    try:
        values = pc.cast(cells, pa.string())
        if rule.kind == "float64":
            values = pc.if_else(pc.equal(values, "true"), "1", values)
            values = pc.if_else(pc.equal(values, "false"), "0", values)
            values = pc.cast(values, pa.float64())
    except pa.ArrowException as error:
        raise DataError(
            f"{source}: column {rule.column} has a value that is no label: {str(error).splitlines()[0]}\n"
            "  Give records whose label is as in the training files."
        ) from None
    positive, negative = (
        np.asarray(mask, dtype=bool) for mask in label_masks(pa.chunked_array([values]), rule)
    )
    return positive.astype(np.float32), positive | negative


def _rows(ids: Mapping[str, Ids], rows: torch.Tensor) -> dict[str, Ids]:
    """The ids of some records, by their numbers."""
    return {field: _rows_of_field(of_field, rows) for field, of_field in ids.items()}


def _rows_of_field(ids: Ids, rows: torch.Tensor) -> Ids:
    if isinstance(ids, torch.Tensor):
        return ids[rows]
    values, offsets = ids
    lengths = offsets.diff()[rows]
    starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    within = torch.arange(int(starts[-1])) - starts[:-1].repeat_interleave(lengths)
    return values[offsets[rows].repeat_interleave(lengths) + within], starts
