"""Loss of quality of a bundle with quantized tables, measured on labelled records against the live model."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ham_dist.errors import BundleError, DataError
from ham_dist.export.bundle import open_bundle
from ham_dist.export.codecs.codec import Tolerance
from ham_dist.export.codecs.registry import tolerance_of
from ham_dist.export.compact import Ids
from ham_dist.training.auc_bootstrap import aucs

MEASURED_ROWS = 1 << 20
"""Most records that a bundle is measured on."""

LabelledIds = tuple[Mapping[str, Ids], torch.Tensor]
"""Ids by field and labels (B,) of some records."""


@dataclass(frozen=True)
class Labelled:
    """Labelled records that are not test records, and the live model's logits of them.

    Attributes:
        source: The records, for messages and the manifest.
        batches: Returns the records in batches, each time from the first.
        logits: The live model's logits, (n,), in the order of the records.
    """

    source: str
    batches: Callable[[], Iterator[LabelledIds]]
    logits: torch.Tensor


@torch.inference_mode()
def measure_bundle(path: Path, records: Labelled, tolerance: float | None = None) -> dict[str, Any]:
    """Compare the bundle at `path` with the model that it was written from.

    Args:
        path: Folder of the bundle.
        records: Records to compare.
        tolerance: Largest allowed difference of the AUC in place of the codecs'; the log loss may differ by 5
            times as much, relative to the live model's.
    Returns:
        For the manifest: records (their source), rows, the live model's auc and log_loss, and of the bundle
        auc_difference, log_loss_difference, max_difference and mean_difference (of a probability), and
        auc_tolerance and log_loss_tolerance.
    Raises:
        BundleError: A difference exceeds the tolerance, or a probability is not finite.
        DataError: All labels are the same, or there are no records.
    """
    bundle = open_bundle(path)
    model = bundle.model()
    parts = [(model(ids), labels) for ids, labels in records.batches()]
    if not parts:
        raise DataError(f"{records.source}: no records to measure the bundle on\n  Give other records.")
    logits, labels = (torch.cat(column).double() for column in zip(*parts, strict=True))
    live = records.logits.double().cpu()
    if len(live) != len(logits):
        raise BundleError(
            f"{path}: {len(logits)} records to measure with, but {len(live)} logits of the live model. "
            "Give the same number of both."
        )
    if not logits.isfinite().all():
        raise BundleError(f"{path}: a probability is not finite. Train the model again.")
    if labels.unique().numel() != 2:
        raise DataError(
            f"{records.source}: all {len(labels):,} records have the same label, so their AUC is undefined\n"
            "  Give records with both labels."
        )
    report = _compare(live, logits, labels)
    limits = tolerance_of(bundle.manifest.codecs)
    if tolerance is not None:
        limits = Tolerance(limits.probability, tolerance)
    report |= _limits(limits, report["log_loss"])
    _require_within(path, bundle.manifest.precision, records.source, report, limits)
    return {"records": records.source, **report, "overridden": tolerance is not None}


def _compare(live: torch.Tensor, found: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Differences of two models' logits, (n,) float64."""
    auc = aucs(torch.stack([live, found]).numpy(), labels.numpy())
    losses = [functional.binary_cross_entropy_with_logits(one, labels).item() for one in (live, found)]
    moved = (torch.sigmoid(found) - torch.sigmoid(live)).abs()
    return {
        "rows": len(live),
        "auc": float(auc[0]),
        "log_loss": losses[0],
        "auc_difference": float(auc[1] - auc[0]),
        "log_loss_difference": losses[1] - losses[0],
        "max_difference": moved.max().item(),
        "mean_difference": moved.mean().item(),
    }


def _limits(limits: Tolerance, log_loss: float) -> dict[str, float | None]:
    return {
        "tolerance": limits.probability,
        "auc_tolerance": limits.auc,
        "log_loss_tolerance": None if limits.log_loss is None else limits.log_loss * log_loss,
    }


def _require_within(
    path: Path, precision: str, source: str, report: Mapping[str, Any], limits: Tolerance
) -> None:
    pairs = (
        ("max_difference", "tolerance"),
        ("auc_difference", "auc_tolerance"),
        ("log_loss_difference", "log_loss_tolerance"),
    )
    if all(report[limit] is None or abs(report[name]) <= report[limit] for name, limit in pairs):
        return
    found = (
        f"{path}: {precision} tables change the AUC of {report['rows']:,} records of {source} by "
        f"{report['auc_difference']:+.2g}, the log loss by {report['log_loss_difference']:+.2g} "
        f"({report['log_loss_difference'] / report['log_loss']:+.2g} of it), "
        f"and a probability by up to {report['max_difference']:.2g}"
    )
    if limits.auc is None:
        raise BundleError(
            f"{found}; expected at most {report['tolerance']:g} for a probability.\n"
            "  Export from the checkpoint that the live model was loaded from, or with precision fp32."
        )
    needed = max(abs(report["auc_difference"]), abs(report["log_loss_difference"]) / (5 * report["log_loss"]))
    raise BundleError(
        f"{found}; expected at most {limits.auc:g} for the AUC and {report['log_loss_tolerance']:.2g} "
        f"for the log loss.\n"
        f"  Export with more bits, or accept the loss with --tolerance {math.ceil(needed * 1e6) / 1e6:g}."
    )
