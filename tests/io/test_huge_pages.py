"""Huge pages and kept memory, each tested in its own process because the switches are process-wide."""

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
within = False
for line in open("/proc/self/smaps"):
    if "-" in line.split()[0]:
        first, last = (int(address, 16) for address in line.split()[0].split("-"))
        within = first <= table.data_ptr() < last
    elif within and line.startswith("VmFlags:"):
        print("hg" in line.split())
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


def asks_for_huge_pages(**environment: str) -> bool:
    """True if a table's memory has the flag of madvise(MADV_HUGEPAGE); the kernel may use small pages."""
    done = subprocess.run(
        [sys.executable, "-c", TABLE],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return {"True\n": True, "False\n": False}[done.stdout]


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="this kernel has no huge pages")
def test_every_command_asks_for_huge_pages_unless_torch_was_told_otherwise() -> None:
    assert asks_for_huge_pages()
    assert not asks_for_huge_pages(THP_MEM_ALLOC_ENABLE="0")


def test_a_large_block_is_not_paged_in_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    # 4 KiB a page, or 2 MiB where the kernel gives huge pages always.
    assert kept < given_back / 2
