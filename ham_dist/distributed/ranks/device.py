"""The device of a rank: its own GPU, or the CPU."""

import os
from typing import Literal

import torch
import torch.distributed as dist

from ham_dist.errors import BackendError


def device_of_rank(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Returns this rank's device, and makes a GPU the current one of the process.

    Args:
        wanted: The setting `ranks.device`; "auto" uses GPUs if there are any.
    Raises:
        BackendError: This host has fewer GPUs than ranks; with "cuda", also if it has none.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return torch.device("cpu")
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if gpus < ranks:
        fewer = (
            f"Start {gpus} ranks on each host"
            if gpus
            else "Install a torch that finds the GPU (`ham-dist doctor`)"
        )
        raise BackendError(
            f'ranks.device = "{wanted}": this host has {ranks} ranks and {gpus} GPUs that torch can use; '
            "each rank needs its own GPU.\n"
            f'  {fewer}, or set ranks.device = "cpu".'
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def require_one_device(store: dist.Store, rank: int, device: torch.device) -> None:
    """Checks that this rank has the same kind of device as rank 0.

    Raises:
        BackendError: One is a GPU and the other a CPU, as on hosts with and without GPUs.
    """
    if rank == 0:
        store.set("device of rank 0", device.type)
    first = store.get("device of rank 0").decode()
    if device.type != first:
        raise BackendError(
            f"ranks.device: rank {rank} is on {device.type} and rank 0 on {first}; all ranks need the same "
            "kind of device.\n"
            '  Use hosts with the same number of GPUs, or set ranks.device = "cpu".'
        )
