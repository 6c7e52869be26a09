"""The ranks that tables are spread over: those of this run, or some that this machine does not have."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ham_dist.distributed.ranks import process_group
from ham_dist.errors import ShardingError

EXAMPLES = "8xA100-80GB, 4xV100-16GB, 4x8xA100-40GB (4 hosts), 4xV100-16GB+256GB (with the memory of a host), 2x24GB (CPU)"

_PATTERN = re.compile(
    r"(?:(?P<hosts>\d+)x)?(?P<ranks>\d+)x(?:(?P<card>[A-Za-z][A-Za-z0-9]*)-)?(?P<memory>\d+(?:\.\d+)?)(?P<unit>[GT]B)"
    r"(?:\+(?P<host>\d+(?:\.\d+)?)(?P<host_unit>[GT]B))?"
)
CPU = torch.device("cpu")

MOST_RANKS = 16_384
"""Ranks that a plan is made for: the planner's work grows with the ranks times the tables."""
_BYTES = {"GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Topology:
    """What a plan is made for.

    device:        "cpu" or "cuda", of every rank.
    ranks:         W.
    ranks_of_host: how many of them share a machine.
    memory:        bytes of one rank: of its GPU, or its share of its machine.
    host_memory:   bytes of one rank's share of its machine, beside its GPU; None where that is not known, and on CPU.
    """

    device: str
    ranks: int
    ranks_of_host: int
    memory: int
    host_memory: int | None = None

    @property
    def hosts(self) -> int:
        """How many machines there are."""
        return self.ranks // self.ranks_of_host


def here(device: torch.device) -> Topology:
    """The ranks of this run; a collective. A host that not all of its ranks know alike counts as one host."""
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
    """A topology by name: `[HOSTSx]RANKSx[CARD-]MEMORY[+MEMORY OF A HOST]`, such as 8xA100-80GB; without a card it is CPU processes.

    1 GB is 10^9 bytes. Without the memory of a host, tables in it are not held against it.

    Raises:
        ShardingError: The text has another form, or names more than MOST_RANKS ranks.
    """
    found = _PATTERN.fullmatch(text)
    if found is None or not int(found["ranks"]) or found["hosts"] == "0" or not float(found["memory"]):
        raise ShardingError(
            f"--topology {text}: is not [HOSTSx]RANKSx[CARD-]MEMORY[+MEMORY OF A HOST]. Some that are: {EXAMPLES}"
        )
    if found["host"] and not found["card"]:
        raise ShardingError(
            f"--topology {text}: a CPU process has its memory in its host's. Leave out +{found['host']}{found['host_unit']}"
        )
    hosts, ranks = int(found["hosts"] or 1), int(found["ranks"])
    if hosts * ranks > MOST_RANKS:
        raise ShardingError(
            f"--topology {text}: {hosts * ranks:,} ranks, expected at most {MOST_RANKS:,}. Give fewer hosts or ranks."
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
    """Bytes of the GPU, or of this machine, or what its container may take of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    # Control groups, version 2 and 1; "max" in the first and a number above all machines' in the second mean that there is no limit.
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = Path("/sys/fs/cgroup", name)
        if limit.exists() and (text := limit.read_text().strip()).isdecimal():
            limits.append(int(text))
    return min(limits)
