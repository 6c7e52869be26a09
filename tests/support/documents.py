"""Code blocks of README.md and docs/, and running them as a reader would."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.forked import ROOT, run_python
from tests.support.server_process import process as server

PAGES = {"README": ROOT / "README.md"} | {page.stem: page for page in sorted((ROOT / "docs").glob("*.md"))}
SECONDS = 600
SERVED = "127.0.0.1:8000"
"""Default address of `ham-dist serve`."""
SHORT = ["pretrain.max_epochs=1", "search.epochs=1", "retrain.max_epochs=1", "data.synthetic.rows=20000"]
SMALL_BATCH = ["data.batch_size=256"]
"""For runs on prepared data, of which the tests write a few thousand samples."""
ONE_TARGET = ["search.targets=[{columns=28}]"]
"""For runs of such a file on several ranks: a run on one rank has trained all targets."""

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"\*Not run by the tests: ((?:.|\n(?!\n))+)\*\s*\Z")
_FILE_NAME = re.compile(r"# ([\w-]+\.toml)\n")


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        language: The word after the fence; `sh` and `python` are run.
        code: Its lines.
        not_run: The reason in a paragraph `*Not run by the tests: REASON*` above it, or None.
    """

    language: str
    code: str
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        reason = _NOT_RUN.search(text[: match.start()])
        found.append(Block(match[1], match[2], reason[1] if reason else None))
    return found


def commands(page: Path) -> list[str]:
    """The lines of the page's shell blocks that are run."""
    return [
        line
        for block in blocks(page)
        if block.language == "sh" and block.not_run is None
        for line in block.code.splitlines()
    ]


def run_page(page: Path, folder: Path) -> str:
    """Runs the blocks of a page one after the other in `folder`, and returns their output.

    Shell commands run line by line, training with fewer epochs. `ham-dist serve` runs in the background on a
    free port until the next one or the end of the page, and must end without an error. A TOML block that
    starts with a comment `# NAME.toml` is written to that file.
    """
    printed = []
    with Servers(folder) as servers:
        for block in blocks(page):
            if block.not_run is not None:
                continue
            if block.language == "toml" and (name := _FILE_NAME.match(block.code)):
                (folder / name[1]).write_text(block.code, encoding="utf-8")
            elif block.language == "python":
                printed.append(run(["python", "-c", servers.addressed(block.code)], folder))
            elif block.language == "sh":
                for line in block.code.splitlines():
                    if line.startswith("ham-dist serve "):
                        servers.start(shlex.split(line))
                    elif not line.startswith("curl ") or shutil.which("curl"):
                        printed.append(run(shortened(servers.addressed(line)), folder))
    return "".join(printed)


class Servers:
    """The server that a page has started last.

    Args:
        folder: Its working directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running = ExitStack()
        self._address = SERVED

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def start(self, words: list[str]) -> None:
        """Starts `words`, which are `ham-dist serve ...`, in place of the server before."""
        self._running.close()
        process, self._address = self._running.enter_context(server(*words[2:], folder=self._folder))

        def stop() -> None:
            process.terminate()
            assert process.wait(SECONDS) == 0

        self._running.callback(stop)

    def addressed(self, text: str) -> str:
        """Returns `text` with the address of the running server."""
        return text.replace(SERVED, self._address)


def run(words: list[str], folder: Path) -> str:
    """Runs a command that must succeed, and returns its output."""
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    if words[0] == "torchrun":  # its default is a fixed port, which another process may use
        environment["PET_STANDALONE"] = "1"
    if words[0] == "ham-dist":  # this checkout's, whichever is installed
        words = ["python", "-m", "ham_dist", *words[1:]]
    if words[0] == "python":
        done = run_python(words[1:], folder=folder, environment=environment, timeout=SECONDS)
    else:
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    assert done.returncode == 0, f"{' '.join(words)[:200]}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def shortened(command: str) -> list[str]:
    """The command's words, with settings that make a run short; 8 ranks become 2."""
    words = [{"1x8": "1x2"}.get(word, word) for word in shlex.split(command)]
    trains = "train" in words or "ham_dist.train" in words or "ham_dist/train.py" in words
    resumes = "--resume" in words and "--max_retries" not in words
    if not trains or resumes or "--plan-only" in words:
        return words
    settings = list(SHORT)
    if any(word.endswith(".toml") for word in words):
        settings += SMALL_BATCH + (ONE_TARGET if words[0] in ("torchrun", "torchx") else [])
    if "torchx" in words and "--" not in words:
        words.append("--")
    return words + [f"--set={setting}" for setting in settings]
