import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.forked import run_python


def test_a_program_runs_as_in_a_process_of_its_own(tmp_path: Path) -> None:
    code = """
import atexit, os, sys
atexit.register(print, "last")
print(__name__, sys.argv, os.getcwd(), os.environ["NAME"], "PATH" in os.environ)
print("an error", file=sys.stderr)
sys.exit(3)
"""
    words = ["-c", code, "a", "b c"]
    forked = run_python(words, folder=tmp_path, environment={"NAME": "x"})
    whole = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env={"NAME": "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (forked.returncode, forked.stdout, forked.stderr) == (whole.returncode, whole.stdout, whole.stderr)
    assert forked.stdout == f"__main__ ['-c', 'a', 'b c'] {tmp_path} x False\nlast\n"


def test_a_module_runs_and_the_libraries_are_there_already() -> None:
    code = "import sys; print('torchrec' in sys.modules, 'ham_dist.run' in sys.modules)"
    assert run_python(["-c", code]).stdout == "True True\n"
    assert run_python(["-m", "ham_dist", "--version"]).stdout.startswith("ham-dist ")


def test_failures_are_those_of_a_process(tmp_path: Path) -> None:
    assert run_python(["-c", "import os; os.kill(os.getpid(), 9)"]).returncode == -9
    failed = run_python(["-c", "1 / 0"])
    assert failed.returncode == 1
    assert failed.stderr.endswith("ZeroDivisionError: division by zero\n")
    with pytest.raises(subprocess.TimeoutExpired):
        run_python(["-c", "import time; time.sleep(600)"], timeout=0.5)


def test_variables_that_a_test_has_set_reach_only_its_own_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; print(os.environ.get('OF_A_TEST'))"
    with monkeypatch.context() as patch:
        patch.setenv("OF_A_TEST", "1")
        assert run_python(["-c", code]).stdout == "1\n"
    assert run_python(["-c", code]).stdout == "None\n"
