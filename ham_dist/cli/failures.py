"""Failures of the commands, all handled in one place.

An error that the user can fix becomes a short message and exit code 2. Any other exception is a bug of
ham_dist and keeps its traceback.
"""

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
"""EX_TEMPFAIL of sysexits.h, "try again later": the run received SIGTERM and saved a checkpoint."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as in shells."""

_INTERRUPTED = {
    "train": "interrupted; the last checkpoint is kept, "
    "and the same command with --run-dir and --resume resumes from it",
    "prepare": "interrupted; finished parts are kept, and the same command resumes from them",
}

GRACE_SECONDS = 1.0
"""Seconds that every rank of a machine except the first waits before it prints an error. If all ranks have
the same error, the first one prints it."""

MORE_MEMORY = {
    "train": "Lower data.batch_size, or spread the tables over more ranks",
    "score": "The columns of 65,536 records and the dense part must fit in memory; the tables need not. "
    "Use a machine with more memory, or export fewer columns",
}
"""Advice if memory runs out, by command."""

# Errors of the machine or of its permissions; any other OSError is a bug of ham_dist.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class Commands(TyperGroup):
    """The group of all commands, which handles their failures."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        An error that the user can fix becomes a short message and exit code 2. Others keep their traceback
        and exit with 1.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):  # a second one
                _print_error(_INTERRUPTED.get(str(ctx.invoked_subcommand), "interrupted"))
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except Preempted as preempted:
            _print_error(str(preempted))
            raise typer.Exit(EXIT_PREEMPTED) from None
        except Exception as error:
            message = _message(error, ctx.invoked_subcommand)
            if message is None:
                raise
            if ctx.params["debug"]:
                traceback.print_exc()
            _print_error(message)
            if isinstance(error, LostRankError):
                _leave_at_once(EXIT_USERS)
            raise typer.Exit(EXIT_USERS) from None


def _message(error: Exception, command: str | None) -> str | None:
    """Message for an error that the user can fix; None for a bug of ham_dist."""
    if isinstance(error, LostRankError):
        time.sleep(GRACE_SECONDS)  # Lets the rank that failed first print its error.
    if isinstance(error, HamError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REFUSED:
        where = f"{error.filename}: " if error.filename else ""
        advice = (
            "Free disk space, or give a folder on another disk"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "Give another path"
        )
        return f"{where}{error.strerror}. {advice}"
    if isinstance(error, MemoryError) or _out_of_torch_memory(error):
        detail = str(error).partition("\n")[0]
        advice = MORE_MEMORY.get(command or "", "Use a machine with more memory, or close other programs")
        return f"out of memory{f' ({detail})' if detail else ''}\n  {advice}"
    return None


def _leave_at_once(code: int) -> NoReturn:
    """End the process without Python's normal shutdown.

    A thread that waits inside torch for a lost rank would abort the process during shutdown.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _out_of_torch_memory(error: Exception) -> bool:
    """torch raises OutOfMemoryError on GPU, and RuntimeError on CPU."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _print_error(message: str) -> None:
    """Print to standard error. If several ranks of a machine have the same error, it is printed once."""
    rank = int(os.environ.get("RANK", "0"))
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(GRACE_SECONDS)
    if _is_printed(message):
        return
    typer.echo(printable(f"{f'[rank {rank}] ' if rank else ''}ham-dist: {message}"), err=True)


def _is_printed(message: str) -> bool:
    """Returns True if another rank of this machine has printed the message; else marks it as printed.

    The rank that creates a file named after the message prints it. The file is in torchrun's folder for the
    error files of a machine's ranks, which is a new one for each restart; without that folder, every rank
    prints.
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
