"""What README.md tells people to type is typed here: the Python example as it stands, the commands with fewer epochs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.raw_movielens import write_raw_movielens

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SHORT = ["pretrain.max_epochs=1", "search.epochs=1", "retrain.max_epochs=1", "data.synthetic.rows=20000"]
SMALL_BATCH = ["data.batch_size=256"]
"""For the commands on MovieLens, of which the test writes a few thousand ratings."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines()]


def shortened(command: str) -> list[str]:
    """The command's words, with settings that make a run short."""
    words = command.split()
    if "train" not in command or ("--resume" in words and "--max_retries" not in words):
        return words
    settings = SHORT + (SMALL_BATCH if "launch/runs/" in command else [])
    if "torchx" in words and "--" not in words:
        words.append("--")
    return words + [f"--set={setting}" for setting in settings]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository's root to the commands, with raw ratings in it."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("launch", "ham_dist", "datasets", ".torchxconfig"):
        (folder / name).symlink_to(ROOT / name)
    write_raw_movielens(folder / "ml-1m", ratings=6_000)
    return folder


def test_commands_in_the_order_of_the_readme(folder: Path) -> None:
    """One test for all, as later commands read what earlier ones wrote."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for command in commands():
        # torchrun alone takes a fixed port, which another process may have.
        standalone = {"PET_STANDALONE": "1"} if command.startswith("torchrun") else {}
        done = subprocess.run(
            shortened(command),
            cwd=folder,
            env=environment | standalone,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, command + done.stdout[-2000:] + done.stderr[-4000:]


def test_every_kind_of_command_is_there() -> None:
    kinds = [command.split()[1] for command in commands() if command.startswith("ham-dist")]
    assert kinds == ["prepare", "train", "export", "score", "report", "inspect"]
    assert "torchx run dist.ddp -j 1x8 ham_dist/train.py" in commands()


def test_example_runs_in_at_most_ten_added_lines(tmp_path: Path) -> None:
    (example,) = blocks("python")
    added = [line for line in example.splitlines() if line.endswith("# +")]
    assert 0 < len(added) <= 10
    code = f"{example}\nfrom ham_dist.export.bundle import open_bundle\nprint(sorted(open_bundle('bundle').tables()))\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    counts = eval(done.stdout.splitlines()[0])
    assert sum(counts.values()) == 10
    assert counts["hour"] < min(counts["user"], counts["item"]), "the field that tells nothing keeps least"
