"""Kills a study (SIGKILL of the command and its workers) at random moments, and compares its results.

    python perf/robustness/kill_study.py --times 20

The study of launch/studies/smoke.toml is run once without kills and then with them, two workers each; the
lines of results.jsonl must be equal, order aside, except for seconds and machine.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STUDY = Path(__file__).parents[2] / "launch" / "studies" / "smoke.toml"
OF_THE_MACHINE = {"seconds", "host", "commit", "versions"}


def start(out: Path) -> "subprocess.Popen[bytes]":
    """Starts or resumes the study."""
    command = [sys.executable, "-m", "ham_dist", "study", str(STUDY), "--out", str(out), "--workers", "2"]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def kill_all(process: "subprocess.Popen[bytes]", out: Path) -> None:
    """Kills the command, and the workers, which have sessions of their own."""
    os.killpg(process.pid, signal.SIGKILL)
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"--out={out}".encode() in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            pass  # ended in the meantime
    process.wait()


def lines(out: Path) -> dict[str, dict[str, Any]]:
    """The finished branches by key, without what depends on the machine."""
    path = out / "results.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = (json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n"))
    return {
        line["key"]: {name: value for name, value in line.items() if name not in OF_THE_MACHINE}
        for line in found
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        began = time.monotonic()
        if start(whole).wait():
            raise SystemExit("the study fails without a kill")
        seconds = time.monotonic() - began
        expected = lines(whole)
        kills = studies = 0
        while kills < options.times:
            out = Path(folder) / f"killed-{studies}"
            studies += 1
            while True:
                process = start(out)
                try:
                    left = draw.uniform(0.2, 0.6) * seconds if kills < options.times else None
                    code = process.wait(left)
                except subprocess.TimeoutExpired:
                    kill_all(process, out)
                    kills += 1
                    print(f"kill {kills}: {len(lines(out))} of {len(expected)} branches finished", flush=True)
                    continue
                if code:
                    raise SystemExit(f"a resumed study ended with exit code {code}")
                break
            if lines(out) != expected:
                raise SystemExit("the results differ from those of the study without kills")
        print(f"{kills} kills in {studies} studies: results equal those without kills, {len(expected)} lines")


if __name__ == "__main__":
    main()
