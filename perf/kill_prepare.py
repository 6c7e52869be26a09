"""Kills `prepare` with SIGKILL at random moments, restarts it each time, and compares the final files.

    python perf/kill_prepare.py --kills 50 --rows 200000

The sha256 of every file must be that of an undisturbed run.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ham_dist.data.synthetic.criteo_text import write_criteo_file

PROGRAM = """
import sys
from pathlib import Path
from ham_dist.data.raw import blocks
from ham_dist.data.prepare.pipeline import prepare
from ham_dist.data.recipe.load import load_recipe
blocks.BLOCK_BYTES = 1 << 20
prepare(load_recipe("criteo-kaggle"), Path(sys.argv[1]), Path(sys.argv[2]), rows_per_shard=10_000)
"""


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rows", type=int, default=200_000)
    options = parser.parse_args()
    moments = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "raw").mkdir()
        write_criteo_file(folder / "raw" / "train.txt", options.rows)
        start = time.monotonic()
        run(folder, "whole").wait()
        seconds = time.monotonic() - start
        wanted = digests(folder / "whole")
        kills = runs = 0
        while kills < options.kills:
            process = run(folder, "killed")
            runs += 1
            try:
                # Mostly early, since a resumed run has less and less to do.
                process.wait(timeout=moments.random() * seconds * 0.7)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                continue
            if process.returncode:
                raise SystemExit(f"failed after {kills} kills")
            if digests(folder / "killed") != wanted:
                raise SystemExit(f"other bytes after {kills} kills")
            subprocess.run(["rm", "-rf", str(folder / "killed")], check=True)
        run(folder, "killed").wait()
        same = digests(folder / "killed") == wanted
    print(
        f"{kills} kills in {runs} runs of up to {seconds:.1f} s each: "
        f"the final files are {'the same' if same else 'DIFFERENT'}"
    )
    raise SystemExit(not same)


def run(folder: Path, out: str) -> "subprocess.Popen[bytes]":
    """Starts the program on the raw files of `folder`."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder / "raw"), str(folder / out)], stderr=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()
