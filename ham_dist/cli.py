"""The command line. What a command needs is imported inside it, so that `ham-dist --help` answers at once."""

import errno
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

import ham_dist
from ham_dist.errors import ConfigError, HamError, LostRankError, Preempted

EXIT_USERS = 2
EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h, "try again later": SIGTERM came, and the run was saved before it ended."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

GRACE_SECONDS = 1.0
"""How long a rank that is not the first of its machine waits before it tells of its mistake: where all made it, torchrun ends it in that time."""

# What the machine or its owner refuses; any other OSError is a bug of ours.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class Commands(TyperGroup):
    """All commands, with one way to fail."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. What the user can mend becomes a short paragraph and exit code 2; the rest keeps its traceback and exits with 1."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if ctx.invoked_subcommand == "train":
                _tell("interrupted; the last checkpoint is kept, and the same command with --run-dir and --resume goes on from it")
            else:
                _tell("interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except Preempted as preempted:
            _tell(str(preempted))
            raise typer.Exit(EXIT_PREEMPTED) from None
        except Exception as error:
            message = _message(error)
            if message is None:
                raise
            if ctx.params["debug"]:
                traceback.print_exc()
            _tell(message)
            if isinstance(error, LostRankError):
                _leave_at_once(EXIT_USERS)
            raise typer.Exit(EXIT_USERS) from None


app = typer.Typer(cls=Commands, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


def main() -> None:
    """The program `ham-dist`."""
    app(prog_name="ham-dist")


def train_command(arguments: list[str]) -> None:
    """`ham-dist train ARGUMENTS`, for the scripts that torchrun starts. Ends the process."""
    app(["train", *arguments], prog_name="ham-dist")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ham-dist {ham_dist.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", envvar="HAM_DIST_DEBUG", help="Show the traceback of every error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Find how many columns each embedding table of a CTR model needs, cut the others away, and hand the rest to serving.

    `ham-dist COMMAND --help` explains a command. Without any data of your own, `ham-dist train` shows a whole run.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("ham_dist").setLevel(logging.INFO)


@app.command()
def prepare(
    recipe: Annotated[str, typer.Argument(help="A recipe of datasets/ by name, the path of one, or `synthetic` for generated data.")],
    out: Annotated[Path, typer.Option(help="New folder for the prepared data.")],
    raw: Annotated[str | None, typer.Option(help="Folder with the raw files; generated data needs none.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For `synthetic`: a key of data.synthetic.")] = None,
) -> None:
    """Turn raw files into Parquet shards, vocabularies and a manifest.

    \b
    Example:
      ham-dist prepare movielens-1m --raw ml-1m --out data/movielens-1m
      ham-dist prepare synthetic --out data/synthetic --set data.synthetic.rows=1000000
    """
    if recipe == "synthetic":
        if raw is not None:
            raise ConfigError("prepare synthetic: has no raw files. Leave --raw out")
        if wrong := [override for override in overrides or [] if not override.startswith("data.synthetic.")]:
            raise ConfigError(f"prepare synthetic: --set {wrong[0]}: only keys of data.synthetic count here, such as --set data.synthetic.seed=3")
        from ham_dist.config.load import load_run
        from ham_dist.data.synthetic import generate

        generate(load_run(None, overrides or []).data.synthetic, out)
    elif raw is None:
        raise ConfigError(f"prepare {recipe}: needs the folder of the raw files. Give --raw FOLDER")
    elif overrides:
        raise ConfigError(f"prepare {recipe}: --set {overrides[0]}: a recipe's settings stand in its TOML. Copy it, change it, and name the copy")
    else:
        from ham_dist.data.prepare import prepare as prepare_data
        from ham_dist.data.recipe import load_recipe

        prepare_data(load_recipe(recipe), raw, out)
    inspect(out)


@app.command()
def train(
    run: Annotated[str | None, typer.Argument(metavar="RUN.toml", help="Settings of the run; without them, the demo run.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, over the file's; once for each.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run; without one, a new one under runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir; starts it where there is none.")] = False,
) -> None:
    """Do a whole run: pretrain, search, slice, retrain, export. On one process; torchrun and torchx start it on many.

    Without RUN.toml it generates data with planted truth and shows the whole flow in a minute. SIGTERM saves a checkpoint and exits with 75.

    \b
    Example:
      ham-dist train launch/runs/movielens_dcnv2.toml --set seed=1 --run-dir runs/first
      ham-dist train --run-dir runs/first --resume
      torchx run dist.ddp -j 1x8 ham_dist/train.py -- launch/runs/movielens_dcnv2.toml --set=seed=1 --set=search.epochs=5

    torchx refuses an option that it sees twice, so several settings are written --set=KEY=VALUE there.
    """
    from ham_dist.config.load import DEMO, load_run
    from ham_dist.train import run as train_run
    from ham_dist.training.run_folder import RunFolder

    if resume and run_dir is None:
        raise ConfigError("train --resume: needs the folder of the run to go on with. Give --run-dir FOLDER")
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 and run_dir is None:
        raise ConfigError("train: ranks that are started again must find their run, which has no fixed name by itself. Give --run-dir FOLDER")
    # torchrun repeats the command as it was after a rank has died.
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if resume and run is None and run_dir is not None and (settings_file := RunFolder(run_dir).settings).exists():
        run = str(settings_file)
    train_run(load_run(run or DEMO, overrides or []), run_dir, resume)


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="New folder for the bundle.")],
    precision: Annotated[Literal["fp32", "fp16"], typer.Option(help="Type of the tables.")] = "fp32",
) -> None:
    """Write the narrow model of a run as a bundle for serving.

    The bundle is compared with the model before it gets its name.

    \b
    Example:
      ham-dist export runs/first/columns-28 --out bundles/first --precision fp16
    """
    from ham_dist.backend import require_backend

    require_backend()
    from ham_dist.export.package import export_run

    export_run(run_dir, out, precision)
    inspect(out)


@app.command()
def score(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    records: Annotated[str, typer.Argument(metavar="INPUT", help="Raw records as the recipe has them, or ids in Parquet.")],
    out: Annotated[Path, typer.Option(help="File for the probabilities: .txt, .csv or .parquet.")],
    values: Annotated[
        Literal["auto", "ids", "raw"], typer.Option(help="What Parquet whose columns are all whole numbers holds, where that is not clear by itself.")
    ] = "auto",
) -> None:
    """Write one probability for each record of INPUT, in its order.

    \b
    Example:
      ham-dist score runs/first/columns-28/bundle data/movielens-1m/test --out probabilities.csv
    """
    from ham_dist.export.scorer import score as score_records

    rows = score_records(bundle, records, out, values)
    typer.echo(f"{rows:,} probabilities in {out}")


@app.command()
def inspect(path: Annotated[Path, typer.Argument(help="Folder of prepared data, of a run, or of a bundle.")]) -> None:
    """Say what a folder holds.

    \b
    Example:
      ham-dist inspect runs/first
    """
    from rich.console import Console

    from ham_dist.describe import describe

    console = Console(width=None if sys.stdout.isatty() else 120)
    for part in describe(path):
        console.print(part)


@app.command()
def doctor() -> None:
    """Check versions, devices and backends.

    Each thing that is wrong comes with its mend.

    \b
    Example:
      ham-dist doctor
    """
    from ham_dist.doctor import report

    if not report():
        raise typer.Exit(EXIT_USERS)


def _message(error: Exception) -> str | None:
    """What to tell of an error that is not a bug of ours, and None for one that is."""
    if isinstance(error, LostRankError):
        time.sleep(GRACE_SECONDS)  # The rank that failed first has the word.
    if isinstance(error, HamError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REFUSED:
        where = f"{error.filename}: " if error.filename else ""
        mend = "Make room, or give a folder on another disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Give another place"
        return f"{where}{error.strerror}. {mend}"
    if isinstance(error, MemoryError) or _out_of_torch_memory(error):
        detail = str(error).partition("\n")[0]
        return f"out of memory{f' ({detail})' if detail else ''}\n  Lower data.batch_size, or spread the tables over more ranks"
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
    """Print to standard error; of several ranks with one mistake, one a machine."""
    rank = int(os.environ.get("RANK", "0"))
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(GRACE_SECONDS)
    typer.echo(f"{f'[rank {rank}] ' if rank else ''}ham-dist: {message}", err=True)
