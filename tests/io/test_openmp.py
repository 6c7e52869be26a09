"""Waiting of OpenMP's threads is limited before torch is loaded, in every way that a run starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ham_dist.io.openmp import SPINS, WAITING, limit_spinning

ROOT = Path(__file__).parents[2]

# Runs a program as `python ...` would until torch starts to load; then prints the C library's environment.
WATCHED = """
import ctypes, os, runpy, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            getenv = ctypes.CDLL(None).getenv
            getenv.restype = ctypes.c_char_p
            print("SPINS", getenv(b"GOMP_SPINCOUNT"), "torch" in sys.modules, flush=True)
            os._exit(0)
        return None

sys.meta_path.insert(0, Watch())
"""
STARTS = {
    "program": "sys.argv[0] = 'ham-dist'\nfrom ham_dist.cli import main\nmain()",
    "package": "runpy.run_module('ham_dist', run_name='__main__', alter_sys=True)",
    "module": "sys.argv.pop(1)\nrunpy.run_module('ham_dist.train', run_name='__main__', alter_sys=True)",
    "script": "sys.argv.pop(1)\n"
    f"runpy.run_path({str(ROOT / 'ham_dist' / 'train.py')!r}, run_name='__main__')",
}


def spins_when_torch_loads(start: str, **environment: str) -> list[str]:
    """The lines that `WATCHED` printed, for `ham-dist train`."""
    clean = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED + STARTS[start], "train", "--plan-only"],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("SPINS")]


@pytest.mark.parametrize("start", STARTS)
def test_it_is_set_before_torch_is_loaded(start: str) -> None:
    assert spins_when_torch_loads(start) == [f"SPINS b'{SPINS}' False"]


def test_a_setting_of_the_user_stays() -> None:
    assert spins_when_torch_loads("program", GOMP_SPINCOUNT="7") == ["SPINS b'7' False"]
    assert spins_when_torch_loads("program", OMP_WAIT_POLICY="active") == ["SPINS None False"]


@pytest.mark.parametrize("name", WAITING)
def test_each_variable_of_waiting_counts(name: str) -> None:
    environment = {name: "1", "OMP_NUM_THREADS": "2"}
    limit_spinning(environment)
    assert environment == {name: "1", "OMP_NUM_THREADS": "2"}


def test_other_settings_of_openmp_leave_it_on() -> None:
    environment = {"OMP_NUM_THREADS": "2", "GOMP_CPU_AFFINITY": "0"}
    limit_spinning(environment)
    assert environment == {"OMP_NUM_THREADS": "2", "GOMP_CPU_AFFINITY": "0", "GOMP_SPINCOUNT": SPINS}
