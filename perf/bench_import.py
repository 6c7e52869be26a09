"""Seconds that `import ham_dist` and `ham-dist --help` take: median and spread of several new processes."""

import statistics
import subprocess
import sys
import time

RUNS = 11
COMMANDS = {"import ham_dist": ["-c", "import ham_dist"], "ham-dist --help": ["-m", "ham_dist", "--help"]}


def main() -> None:
    for name, arguments in COMMANDS.items():
        seconds = []
        for _ in range(RUNS):
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
        print(
            f"{name}: median {statistics.median(seconds):.3f} s, "
            f"{min(seconds):.3f} to {max(seconds):.3f} s, {RUNS} runs"
        )


if __name__ == "__main__":
    main()
