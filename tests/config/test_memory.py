"""Freed memory stays with the process; asked in one of its own, since the switch is the whole process's."""

import subprocess
import sys

PROGRAM = """
import resource
import torch
from ham_dist.config.memory import keep_freed_memory

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


def test_a_large_block_is_not_paged_in_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 5 * 8_000  # else there is nothing to keep here, and no use for the switch
    assert kept < 8_000
