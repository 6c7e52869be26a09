"""Bringing rows together that lie on several ranks."""

import torch
import torch.distributed as dist

from ham_dist.distributed.ranks import process_group


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """The rows of every rank one after the other, by rank, on every rank.

    Args:
        values: (n, ...) here; n may differ from rank to rank and may be 0.
    """
    if process_group.world_size() == 1:
        return values
    counts = process_group.gather_objects(values.shape[0])
    padded = values.new_zeros((max(counts), *values.shape[1:]))
    padded[: values.shape[0]] = values
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def exchange_rows(values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Send each rank some rows; gives the rows that all ranks sent to this one, by sender. A collective.

    Args:
        values: (n, ...) here: first the rows for rank 0, then those for rank 1, and so on.
        counts: Rows for each rank; their sum is n.
    """
    if process_group.world_size() == 1:
        return values
    received = [sent[process_group.rank()] for sent in process_group.gather_objects(counts)]
    rows = values.new_empty((sum(received), *values.shape[1:]))
    dist.all_to_all_single(rows, values.contiguous(), received, counts)
    return rows
