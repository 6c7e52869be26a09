"""Compares the models of a run with its supernet, on validation rows.

Shape letter: N validation rows.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.gather import gather_rows
from ham_dist.errors import CheckpointError
from ham_dist.io.atomic import new_file
from ham_dist.stages.slice import logits_of
from ham_dist.training.auc_bootstrap import auc_difference, aucs
from ham_dist.training.frontier import SizedModel
from ham_dist.training.run_paths import RunPaths
from ham_dist.training.samples import Samples
from ham_dist.training.state import TrainingState

MOST_ROWS = 1 << 20
"""Validation rows whose logits are kept, at most."""
RESAMPLES = 200
"""Resamples of the bootstrap; the standard error is then known to about 5 %."""


def validation_logits(state: TrainingState, samples: Samples) -> dict[str, torch.Tensor]:
    """Returns logits, (N,) float32, and labels, (N,) uint8, of the first validation rows, in file order.

    The order does not depend on the number of ranks. A collective.
    """
    logits: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    batches = -(-MOST_ROWS // state.settings.data.evaluation_batch_size)
    for batch in state.batches(islice(samples.evaluation("validation"), batches)):
        logits.append(logits_of(state, batch).float().cpu())
        labels.append(gather_rows(batch.labels).to(torch.uint8).cpu())
    return {"logits": torch.cat(logits)[:MOST_ROWS], "labels": torch.cat(labels)[:MOST_ROWS]}


def save_logits(folder: RunPaths, values: dict[str, torch.Tensor]) -> None:
    """Writes what `validation_logits` returned, on rank 0."""

    def write() -> None:
        with new_file(folder.validation) as path:
            save_file(values, path)

    process_group.on_first_rank(write)


def frontier(
    supernet: RunPaths, models: Sequence[tuple[RunPaths, str, int, int]], tolerance: float
) -> list[SizedModel]:
    """Returns the models of a run, from the largest to the smallest.

    Args:
        supernet: Folder with the supernet's logits.
        models: Folder, label of the target, kept columns, and bytes of the tables of each model.
        tolerance: Loss of AUC up to which a smaller model is as good as the supernet.
    Raises:
        CheckpointError: Logits are missing, or are not of the same rows.
    """
    of_supernet = _read(supernet.validation)
    points = []
    for folder, label, columns, size in models:
        values = _read(folder.validation)
        if not torch.equal(values["labels"], of_supernet["labels"]):
            raise CheckpointError(
                f"{folder.validation}: has other rows than {supernet.validation}. "
                "Run the target again: remove its folder, and resume the run"
            )
        labels = values["labels"].numpy()
        scores = values["logits"].double().numpy()
        found = auc_difference(scores, of_supernet["logits"].double().numpy(), labels, resamples=RESAMPLES)
        points.append(
            SizedModel(
                label,
                columns,
                size,
                float(aucs(scores[None], labels)[0]),
                found.difference,
                found.standard_error,
                found.difference >= -tolerance,
            )
        )
    return sorted(points, key=lambda point: -point.bytes)


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own class, and OSError
        raise CheckpointError(
            f"{path}: cannot be read: {error}. Remove the folder of its target, and resume the run"
        ) from None
