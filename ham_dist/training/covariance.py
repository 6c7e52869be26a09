"""Covariances of the columns of each table, and their principal axes.

Shape letters: C rows and d columns of one table, B rows of a batch.
"""

from collections.abc import Callable, Iterator, Mapping

import torch

from ham_dist.config.base import RowWeights
from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.ranks.rounding import FLOAT32_BITS, rounded
from ham_dist.distributed.sharding.model import TABLES
from ham_dist.training.state import TrainingState


@torch.no_grad()
def covariances(
    state: TrainingState, training: Callable[[], Iterator[Batch]], weights: RowWeights
) -> dict[str, torch.Tensor]:
    """Returns the covariance of the columns of each table under search. A collective.

    Args:
        state: The model.
        training: Returns the batches of one pass over the training samples.
        weights: `rows`: each row of the table counts once. `lookups`: each lookup of the training samples
            counts once, so a row that is not looked up does not count. The bag of a field with several values
            counts as one lookup, of its mean.
    Returns:
        (d, d) float64 on CPU, the same on every rank.
    """
    layout = state.sharded.mask.layout
    moments = {
        table: torch.zeros(dim + 1, dim + 1, dtype=torch.float64) for table, dim in layout.dims.items()
    }
    if weights == "rows":
        for chunk in state.sharded.chunks(TABLES):  # yields each row on one rank
            moments[chunk.field] += moment(chunk.values)
    else:
        for batch in state.batches(training()):
            columns = state.columns(batch)
            for table, part in layout.slices.items():
                moments[table] += moment(columns[:, part]).cpu()
    return covariances_of(summed(moments, state.sharded.device))


def moment(rows: torch.Tensor) -> torch.Tensor:
    """Returns the products of the columns of [1, V] over all rows, (d + 1, d + 1) float64.

    It adds up over parts of a table: the number of rows, the sums of the columns, and V'V.

    Args:
        rows: V, (C, d).
    """
    values = torch.nn.functional.pad(rows.detach().double(), (1, 0), value=1.0)
    return values.T @ values


def summed(moments: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Returns the sums of the moments over all ranks. A collective.

    They are rounded to float32, so that they do not depend on the number of ranks.
    """
    flat = torch.cat([values.flatten() for values in moments.values()]).to(device)
    total = rounded(process_group.sum_over_ranks(flat).cpu(), FLOAT32_BITS)
    parts = total.split([values.numel() for values in moments.values()])
    return {table: part.view_as(moments[table]) for table, part in zip(moments, parts, strict=True)}


def covariances_of(moments: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the covariance, (d, d), of each table, from its `moment`; divided by the number of rows."""
    found = {}
    for table, values in moments.items():
        mean = values[0, 1:] / values[0, 0]
        found[table] = values[1:, 1:] / values[0, 0] - torch.outer(mean, mean)
    return found
