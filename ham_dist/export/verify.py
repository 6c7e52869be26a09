"""Comparison of a bundle with the live model, on the same records."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ham_dist.errors import BundleError
from ham_dist.export.bundle import open_bundle
from ham_dist.export.codecs.registry import tolerance_of
from ham_dist.export.compact import CompactModel, Ids


@torch.inference_mode()
def probabilities(model: CompactModel, batches: Iterable[Mapping[str, Ids]]) -> torch.Tensor:
    """Returns the probabilities of all batches, concatenated, (n,) float32 on CPU."""
    parts = [torch.sigmoid(model(batch)).cpu() for batch in batches]
    return torch.cat(parts) if parts else torch.empty(0)


def verify_bundle(
    path: Path,
    batches: Iterable[Mapping[str, Ids]],
    live: torch.Tensor,
    device: torch.device | str = "cpu",
    *,
    copied: bool = False,
) -> dict[str, float | int | None]:
    """Compare the bundle at `path` with the model that it was written from.

    Args:
        path: Folder of the bundle.
        batches: Ids by field of the records to compare, on `device`.
        live: The live model's probabilities of the same records in the same order, (n,).
        device: Device of the bundle's model; best that of the live one, as devices sum in different orders.
        copied: True if the live tables have the bundle's precision, so that they were copied unchanged.
    Returns:
        rows, max_difference (of a probability) and tolerance (None for codecs that bound no probability).
    Raises:
        BundleError: The bundle cannot be opened, a probability differs by more than the tolerance or is NaN,
            or there are no records.
    """
    bundle = open_bundle(path)
    tolerance = tolerance_of(("fp32",) if copied else bundle.manifest.codecs).probability
    batches = list(batches)
    # Tables may be too large for one rank, so only the rows of these records are loaded.
    rows = _rows_of(batches)
    found = probabilities(bundle.model(rows).to(device), [_places(batch, rows) for batch in batches])
    if len(found) != len(live) or not len(found):
        raise BundleError(
            f"{path}: {len(found)} records to verify with, but {len(live)} probabilities of the live model. "
            "Give the same number of both, at least 1."
        )
    difference = (found.double() - live.detach().cpu().double()).abs().max().item()
    if not difference <= (math.inf if tolerance is None else tolerance):  # also true of NaN
        raise BundleError(
            f"{path}: probabilities differ from the live model's by up to {difference:.3g}, "
            f"more than {tolerance:g}, over {len(found)} records.\n"
            "  Export from the checkpoint that the live model was loaded from"
            + (", or with precision fp32." if bundle.manifest.precision != "fp32" else ".")
        )
    return {"rows": len(found), "max_difference": difference, "tolerance": tolerance}


def _rows_of(batches: Sequence[Mapping[str, Ids]]) -> dict[str, torch.Tensor]:
    """By field, the ids that occur in any batch, ascending, on CPU; id 0 where there are none."""
    fields = dict.fromkeys(field for batch in batches for field in batch)
    values = {
        field: [
            ids if isinstance(ids := batch[field], torch.Tensor) else ids[0]
            for batch in batches
            if field in batch
        ]
        for field in fields
    }
    return {
        field: torch.cat([torch.zeros(1, dtype=torch.int64), *(part.long().cpu() for part in parts)]).unique()
        for field, parts in values.items()
    }


def _places(batch: Mapping[str, Ids], rows: Mapping[str, torch.Tensor]) -> dict[str, Ids]:
    """`batch` with each id replaced by its place among the `rows` of its field."""

    def places(field: str, ids: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(rows[field].to(ids.device), ids.long())

    return {
        field: places(field, ids) if isinstance(ids, torch.Tensor) else (places(field, ids[0]), ids[1])
        for field, ids in batch.items()
    }
