"""Collectives that gather or exchange rows of tensors."""

import torch
import torch.distributed as dist

from ham_dist.distributed.ranks import process_group


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """Returns the rows of all ranks, concatenated in the order of the ranks. A collective.

    Args:
        values: (n, ...), this rank's rows; n may differ between ranks and may be 0.
    Returns:
        (sum of n over ranks, ...), the same on every rank.
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
    """Sends rows to each rank, and returns the rows that this rank received. A collective.

    Args:
        values: (n, ...), first the rows for rank 0, then those for rank 1, and so on.
        counts: Number of rows for each rank; their sum is n.
    Returns:
        (m, ...), the rows from rank 0, then those from rank 1, and so on.
    """
    if process_group.world_size() == 1:
        return values
    received = [sent[process_group.rank()] for sent in process_group.gather_objects(counts)]
    rows = values.new_empty((sum(received), *values.shape[1:]))
    dist.all_to_all_single(rows, values.contiguous(), received, counts)
    return rows
