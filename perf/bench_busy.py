"""Samples a second of the demo's pretraining on an idle and on a busy machine, under several OpenMP settings.

    python perf/bench_busy.py                                               ham_dist's default and torch's own
    python perf/bench_busy.py GOMP_SPINCOUNT=1000 GOMP_SPINCOUNT=10000      others as well
    python perf/bench_busy.py --rounds 1 OMP_WAIT_POLICY=passive            a quick run

Busy means that two other processes use the processor all the time. Run it on a machine that does nothing
else. Settings take turns within a round, so that a machine that slows down slows all of them. `own` is torch
without a setting, whose threads spin for milliseconds: GOMP_SPINCOUNT=300000 is the default of GNU OpenMP
when it has a core for each thread. The default of ham_dist should keep 0.95 of its idle speed, and 0.45 of
that when busy.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ham_dist.io.openmp import SPINS, WAITING

OTHERS = 2
OWN = "GOMP_SPINCOUNT=300000"


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keeps this many other processes busy while the block runs."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def samples_per_second(setting: str) -> float:
    """Speed of the demo's pretraining in a process of its own under `setting`, NAME=VALUE."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    name, _, value = setting.partition("=")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options = [
            "--set=pretrain.max_epochs=2",
            "--set=search.method=magnitude",
            "--set=retrain.max_epochs=1",
        ]
        subprocess.run(
            [sys.executable, "-m", "ham_dist", "train", "--run-dir", str(run), *options],
            env=environment | {name: value},
            cwd=folder,
            check=True,
            capture_output=True,
        )
        result = json.loads((run / "result.json").read_text())
    speed: float = result["samples_per_second"]["pretrain"]
    return speed


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="further settings of OpenMP")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    settings = [OWN, f"GOMP_SPINCOUNT={SPINS}", *arguments.settings]
    speeds: dict[tuple[str, int], list[float]] = {}
    for _ in range(arguments.rounds):
        for others in (0, OTHERS):
            with busy(others):
                for setting in settings:
                    speeds.setdefault((setting, others), []).append(samples_per_second(setting))
    idle_own = statistics.median(speeds[OWN, 0])
    print(
        f"{'setting':32} {'idle':>10} {'of own':>7} {'busy':>10} {'of own':>7}"
        f"   (medians of {arguments.rounds})"
    )
    for setting in settings:
        idle, loaded = (statistics.median(speeds[setting, others]) for others in (0, OTHERS))
        print(f"{setting:32} {idle:10,.0f} {idle / idle_own:7.2f} {loaded:10,.0f} {loaded / idle_own:7.2f}")


if __name__ == "__main__":
    main()
