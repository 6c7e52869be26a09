"""Bringing rows together that lie on several ranks."""

import torch
import torch.distributed as dist

from ham_dist.distributed.ranks import process_group


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """The rows of every rank one after the other, by rank, on every rank.

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
