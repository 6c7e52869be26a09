"""The one way in which commands fail: a short paragraph and an exit code for what a user can mend, a traceback for a bug of ours."""

import errno
import hashlib
import os
import re
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ham_dist.errors import HamError, LostRankError, Preempted
from ham_dist.io.printable import printable

EXIT_USERS = 2
EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h, "try again later": SIGTERM came, and the run was saved before it ended."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

_INTERRUPTED = {
    "train": "interrupted; the last checkpoint is kept, and the same command with --run-dir and --resume resumes from it",
    "prepare": "interrupted; what is finished is kept, and the same command resumes from it",
}

GRACE_SECONDS = 1.0
"""Pause of a rank that is not the first of its machine before it prints its mistake: if all made it, the first one prints it."""

MORE_MEMORY = {
    "train": "Lower data.batch_size, or spread the tables over more ranks",
    "score": "The bundle's tables must fit in memory: use a machine with more, or export with --precision fp16",
}
"""Advice when memory ends, by command."""

# What the machine or its owner refuses; any other OSError is a bug of ours.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class Commands(TyperGroup):
    """All commands, with one way to fail."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. What the user can mend becomes a short paragraph and exit code 2; the rest keeps its traceback and exits with 1."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):  # a second one
                _tell(_INTERRUPTED.get(str(ctx.invoked_subcommand), "interrupted"))
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except Preempted as preempted:
            _tell(str(preempted))
            raise typer.Exit(EXIT_PREEMPTED) from None
        except Exception as error:
            message = _message(error, ctx.invoked_subcommand)
            if message is None:
                raise
            if ctx.params["debug"]:
                traceback.print_exc()
            _tell(message)
            if isinstance(error, LostRankError):
                _leave_at_once(EXIT_USERS)
            raise typer.Exit(EXIT_USERS) from None


def _message(error: Exception, command: str | None) -> str | None:
    """Text about an error that the user can fix, and None for a bug of ours."""
    if isinstance(error, LostRankError):
        time.sleep(GRACE_SECONDS)  # The rank that failed first has the word.
    if isinstance(error, HamError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REFUSED:
        where = f"{error.filename}: " if error.filename else ""
        mend = (
            "Make room, or give a folder on another disk"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "Give another place"
        )
        return f"{where}{error.strerror}. {mend}"
    if isinstance(error, MemoryError) or _out_of_torch_memory(error):
        detail = str(error).partition("\n")[0]
        advice = MORE_MEMORY.get(command or "", "Use a machine with more memory, or end other programs")
        return f"out of memory{f' ({detail})' if detail else ''}\n  {advice}"
    return None


def _leave_at_once(code: int) -> NoReturn:
    """End the process without Python's way out: a thread that waits inside torch for a rank that is gone would have it aborted."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _out_of_torch_memory(error: Exception) -> bool:
    """torch raises a class of its own on a GPU, and RuntimeError on CPU."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _tell(message: str) -> None:
    """Print to standard error; several ranks of a machine with one mistake print it once."""
    rank = int(os.environ.get("RANK", "0"))
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(GRACE_SECONDS)
    if _is_told(message):
        return
    typer.echo(printable(f"{f'[rank {rank}] ' if rank else ''}ham-dist: {message}"), err=True)


def _is_told(message: str) -> bool:
    """True if another rank of this machine has printed the message; else this rank takes it on.

    The first rank to create a file that is named after the message prints it. torchrun gives the ranks of a machine a
    folder for their error files, a new one for each attempt; without one every rank prints.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return False
    text = re.sub(r"^rank \d+: ", "", message)  # an error that came from another rank
    mark = Path(error_file).parent.parent / f"ham-dist-{hashlib.sha256(text.encode()).hexdigest()}"
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return True
    except OSError:
        return False
    return False
