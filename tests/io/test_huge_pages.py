"""Huge pages, and freed memory that stays; asked in a process of its own, since the switches are the whole process's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

TABLE = """
import sys
from typer.testing import CliRunner
from ham_dist.cli import app
CliRunner().invoke(app, ["inspect", "no-such-folder"])
import torch, torchrec  # which makes a first tensor as it is loaded

table = torch.ones(64 << 18)  # 64 MiB
for line in open("/proc/self/smaps_rollup"):
    if line.startswith("AnonHugePages"):
        print(int(line.split()[1]) >> 10)
"""

PROGRAM = """
import resource
import torch
from ham_dist.io.huge_pages import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16 << 20)  # 64 MiB, of 4096 bytes a page
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
keep_freed_memory()
for _ in range(3):  # until the heap has grown to what is asked of it
    faults()
print(given_back, faults())
"""


def megabytes_of_huge_pages(**environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", TABLE],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="this kernel gives huge pages always or never",
)
def test_every_command_has_tables_in_huge_pages_unless_torch_was_told_otherwise() -> None:
    assert megabytes_of_huge_pages() >= 60
    assert megabytes_of_huge_pages(THP_MEM_ALLOC_ENABLE="0") < 60


def test_a_large_block_is_not_paged_in_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 5 * 8_000  # else there is nothing to keep here, and no use for the switch
    assert kept < 8_000
