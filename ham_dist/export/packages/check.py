"""Comparison of a package with the model of its bundle, on the same records.

B records
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

import torch

from ham_dist.errors import BundleError, DataError
from ham_dist.export.bundle import Bundle
from ham_dist.export.compact import Ids
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.packages.description import Compared
from ham_dist.export.records import read_records

TOLERANCE = 1e-5
"""Largest allowed difference of a probability: sums are taken in another order, in float32."""
RECORDS = 4096
"""Records of a user that are compared; the block that reaches this number is the last one."""
_BLOCK = 256
"""Records of a user that are compared at once."""
BATCHES = (1, 2, 7, 64)
"""Sizes of the generated batches."""

Runner: TypeAlias = Callable[[Mapping[str, Ids]], torch.Tensor]
"""Returns the probabilities (B,) of ids by field, as `CompactModel.forward` takes them."""


def read_fields(bundle: Bundle) -> list[FieldEntry]:
    """Returns the entries of the fields that the model reads, in its order."""
    by_name = {field.name: field for field in bundle.manifest.fields}
    return [by_name[name] for name in bundle.model().read_fields]


def generated_batches(fields: Sequence[FieldEntry], seed: int = 0) -> Iterator[dict[str, Ids]]:
    """Yields ids over the whole range of each table.

    The first batch has the id 0 of all fields, the second one also their largest ids; of a multi-valued
    field, records have no, one or several values.
    """
    generator = torch.Generator().manual_seed(seed)
    for number, rows in enumerate(BATCHES):
        yield {field.name: _generated(field, rows, number == 0, generator) for field in fields}


def _generated(field: FieldEntry, rows: int, zeros: bool, generator: torch.Generator) -> Ids:
    if not field.multi_valued:
        return _some_ids(field, rows, zeros, generator)
    lengths = torch.randint(0, 6, (rows,), generator=generator)
    lengths[:2] = torch.tensor([1] if zeros else [3, 0])[:rows]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return _some_ids(field, int(offsets[-1]), zeros, generator), offsets


def _some_ids(field: FieldEntry, count: int, zeros: bool, generator: torch.Generator) -> torch.Tensor:
    ids = torch.randint(0, field.num_embeddings, (count,), generator=generator)
    if zeros:
        return torch.zeros_like(ids)
    ids[:2] = torch.tensor([field.num_embeddings - 1, 0])[:count]
    return ids


def _user_batches(bundle: Bundle, fields: Sequence[FieldEntry], records: str) -> Iterator[dict[str, Ids]]:
    count = 0
    for block in read_records(bundle, records, fields, "auto", _BLOCK):
        ids = next(iter(block.ids.values()))
        rows = len(ids) if isinstance(ids, torch.Tensor) else len(ids[1]) - 1
        if rows:
            yield block.ids
        count += rows
        if count >= RECORDS:
            return
    if not count:
        raise DataError(f"{records}: has no records; expected some to compare the package on. Omit --records")


@torch.inference_mode()
def compare(bundle: Bundle, runners: Mapping[str, Runner], records: str | None = None) -> Compared:
    """Compare the models of a package with that of its bundle.

    Args:
        runners: The models of the package, by name.
        records: Raw or prepared records to compare on, after the generated ids; None: only these.
    Returns:
        The largest difference of a probability for each name.
    Raises:
        BundleError: A probability differs by more than TOLERANCE, or is NaN.
        DataError: The records cannot be read.
    """
    model, fields = bundle.model(), read_fields(bundle)
    batches: Iterable[Mapping[str, Ids]] = generated_batches(fields)
    if records is not None:
        batches = chain(batches, _user_batches(bundle, fields, records))
    count, differences = 0, dict.fromkeys(runners, 0.0)
    for ids in batches:
        wanted = torch.sigmoid(model(ids)).double()
        count += len(wanted)
        for name, run in runners.items():
            found = run(ids).double()
            difference = (found - wanted).abs().max().item() if found.shape == wanted.shape else torch.nan
            if not difference <= TOLERANCE:  # also true of NaN
                raise BundleError(
                    f"{bundle.root}: its package ({name}) has probabilities of shape {tuple(found.shape)} "
                    f"that differ from the bundle's by up to {difference:.3g} over {len(wanted)} records, "
                    f"more than {TOLERANCE:g}.\n"
                    "  Nothing was written. Try another version of the libraries of the extra "
                    "ham-dist[package]."
                )
            differences[name] = max(differences[name], difference)
    return Compared(records=count, max_difference=differences, tolerance=TOLERANCE)
