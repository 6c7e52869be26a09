"""Runs tests/test_hostile_files.py with one seed after another, and prints the traceback of each fault.

    python perf/robustness/fuzz.py --seed 7

Each seed is 2,000 inputs. Ctrl-C ends it; `--seeds` does after so many.
"""

import argparse
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_hostile_files.py"]


def main() -> None:
    """Run seeds until Ctrl-C, and exit with 1 if one of them found a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="the first one (default: the time)"
    )
    parser.add_argument("--seeds", type=int, help="end after so many (default: never)")
    options = parser.parse_args()
    failed: list[int] = []
    seeds = itertools.count(options.seed)
    try:
        for seed in itertools.islice(seeds, options.seeds):
            environment = os.environ | {"HAM_DIST_FUZZ_SEED": str(seed)}
            done = subprocess.run(COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True)
            if done.returncode:
                failed.append(seed)
                print(done.stdout, done.stderr, sep="\n")
            print(f"seed {seed}: {'faults' if done.returncode else 'no fault'}", flush=True)
    except KeyboardInterrupt:
        pass
    if failed:
        sys.exit(f"faults under the seeds {', '.join(map(str, failed))}")


if __name__ == "__main__":
    main()
