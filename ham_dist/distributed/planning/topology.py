"""The ranks that tables are spread over: those of this run, or hypothetical ones given by name."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ham_dist.distributed.ranks import process_group
from ham_dist.errors import ShardingError

EXAMPLES = (
    "8xA100-80GB, 4xV100-16GB, 4x8xA100-40GB (4 hosts), 4xV100-16GB+256GB (with host memory), 2x24GB (CPU)"
)

_PATTERN = re.compile(
    r"(?:(?P<hosts>\d+)x)?(?P<ranks>\d+)x(?:(?P<card>[A-Za-z][A-Za-z0-9]*)-)?"
    r"(?P<memory>\d+(?:\.\d+)?)(?P<unit>[GT]B)"
    r"(?:\+(?P<host>\d+(?:\.\d+)?)(?P<host_unit>[GT]B))?"
)
CPU = torch.device("cpu")

MOST_RANKS = 16_384
"""Largest number of ranks of a plan. Planning time grows with the number of ranks times the number of
tables."""
_BYTES = {"GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Topology:
    """The ranks of a plan and their memory.

    Attributes:
        device: "cpu" or "cuda", the same for every rank.
        ranks: W.
        ranks_of_host: Ranks per host.
        memory: Bytes of one rank: of its GPU, or on CPU its share of host memory.
        host_memory: On GPU, bytes of one rank's share of host memory; None if unknown, and on CPU.
    """

    device: str
    ranks: int
    ranks_of_host: int
    memory: int
    host_memory: int | None = None

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return self.ranks // self.ranks_of_host


def here(device: torch.device) -> Topology:
    """Returns the ranks of this run. A collective.

    If W is not a multiple of the ranks per host, all ranks count as one host.
    """
    ranks, ranks_of_host = process_group.world_size(), process_group.ranks_of_host()
    of_device, of_host = (
        min(column)
        for column in zip(
            *process_group.gather_objects((_memory(device), _memory(CPU) // ranks_of_host)), strict=True
        )
    )
    together = ranks_of_host if ranks % ranks_of_host == 0 else ranks
    return (
        Topology("cuda", ranks, together, of_device, of_host)
        if device.type == "cuda"
        else Topology("cpu", ranks, together, of_host)
    )


def parse(text: str) -> Topology:
    """Returns the topology with the name `[HOSTSx]RANKSx[CARD-]MEMORY[+HOST_MEMORY]`; see EXAMPLES.

    Without a card, the ranks are CPU processes. 1 GB is 10^9 bytes. Without the memory of a host, host memory
    is taken as unlimited.

    Raises:
        ShardingError: The text has another form, or more than MOST_RANKS ranks.
    """
    found = _PATTERN.fullmatch(text)
    if found is None or not int(found["ranks"]) or found["hosts"] == "0" or not float(found["memory"]):
        raise ShardingError(
            f"--topology {text}: expected [HOSTSx]RANKSx[CARD-]MEMORY[+HOST_MEMORY].\n  Examples: {EXAMPLES}."
        )
    if found["host"] and not found["card"]:
        raise ShardingError(
            f"--topology {text}: host memory is given separately for GPUs only; CPU ranks have no other "
            "memory.\n"
            f"  Remove +{found['host']}{found['host_unit']}, or name a GPU, as in 4xV100-16GB+256GB."
        )
    hosts, ranks = int(found["hosts"] or 1), int(found["ranks"])
    if hosts * ranks > MOST_RANKS:
        raise ShardingError(
            f"--topology {text}: {hosts * ranks:,} ranks, expected at most {MOST_RANKS:,}. Give fewer hosts "
            "or ranks."
        )
    host_memory = int(float(found["host"]) * _BYTES[found["host_unit"]]) // ranks if found["host"] else None
    return Topology(
        "cuda" if found["card"] else "cpu",
        hosts * ranks,
        ranks,
        int(float(found["memory"]) * _BYTES[found["unit"]]),
        host_memory,
    )


def _memory(device: torch.device) -> int:
    """Returns the bytes of the GPU, or of this machine or the memory limit of its container."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    # Control groups, version 2 and 1. No limit is "max" in version 2 and a huge number in version 1.
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = Path("/sys/fs/cgroup", name)
        if limit.exists() and (text := limit.read_text().strip()).isdecimal():
            limits.append(int(text))
    return min(limits)
