"""The command line. What a command needs is imported inside it, so that `ham-dist --help` answers at once."""

import errno
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterable
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
            elif ctx.invoked_subcommand == "prepare":
                _tell("interrupted; what is finished is kept, and the same command goes on from it")
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
def fetch(
    recipe: Annotated[str, typer.Argument(help="A data set of datasets/sources/, such as movielens-1m.")],
    out: Annotated[Path, typer.Option(help="New folder for the raw files.")],
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="You have read the licence that is shown, and accept it.")] = False,
) -> None:
    """Download raw files, or say where a person must accept a licence and what to put where.

    A download that was cut off goes on with the same command.

    \b
    Example:
      ham-dist fetch movielens-1m --out ml-1m --accept-licence
    """
    from ham_dist.data.fetch import fetch as fetch_data
    from ham_dist.data.fetch import load_source, prepare_command

    source = load_source(recipe)
    typer.echo(f"{source.page}\n{source.licence}\n")
    fetch_data(recipe, source, out, accept_licence)
    typer.echo(f"raw files in {out}. Next:\n  {prepare_command(recipe, out)}")


@app.command()
def prepare(
    recipe: Annotated[str, typer.Argument(help="A recipe of datasets/ by name, the path of one, or `synthetic` for generated data.")],
    out: Annotated[Path, typer.Option(help="New folder for the prepared data.")],
    raw: Annotated[str | None, typer.Option(help="Folder with the raw files; generated data needs none.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For `synthetic`: a key of data.synthetic.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="What the work may take, such as 4GB (the default).")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="As many as cores, without it.")] = None,
    spill: Annotated[Path | None, typer.Option(help="Folder for what does not fit in memory; beside the output, without it.")] = None,
    engine: Annotated[Literal["duckdb", "spark"], typer.Option(help="What counts and encodes: both write the same.")] = "duckdb",
    master: Annotated[str | None, typer.Option(metavar="URL", help="Spark's master address; this machine, without it.")] = None,
    max_rejected: Annotated[float | None, typer.Option(min=0, max=1, help="Over the recipe's: the share of a file's lines that may be bad.")] = None,
) -> None:
    """Turn raw files into Parquet shards, vocabularies and a manifest.

    Stopped at any moment, the same command goes on with what is finished. Lines that cannot be read stand in OUT/rejected, each with its reason.

    \b
    Example:
      ham-dist prepare movielens-1m --raw ml-1m --out data/movielens-1m
      ham-dist prepare criteo-kaggle --raw criteo --out data/criteo-kaggle --memory 8GB --threads 4 --spill /fast/spill
      ham-dist prepare synthetic --out data/synthetic --set data.synthetic.rows=1000000 --set data.synthetic.preset=dlrm
    """
    if recipe == "synthetic":
        if raw is not None:
            raise ConfigError("prepare synthetic: has no raw files. Leave --raw out")
        if wrong := [override for override in overrides or [] if not override.startswith("data.synthetic.")]:
            raise ConfigError(f"prepare synthetic: --set {wrong[0]}: only keys of data.synthetic count here, such as --set data.synthetic.seed=3")
        given = {"--memory": memory, "--threads": threads, "--spill": spill, "--master": master, "--max-rejected": max_rejected}
        if unused := [name for name, value in given.items() if value is not None] + ["--engine"] * (engine != "duckdb"):
            raise ConfigError(f"prepare synthetic: {unused[0]} is for raw files. Leave it out")
        from ham_dist.config.load import load_run
        from ham_dist.data.synthetic import generate

        generate(load_run(None, overrides or []).data.synthetic, out)
    elif raw is None:
        raise ConfigError(f"prepare {recipe}: needs the folder of the raw files. Give --raw FOLDER")
    elif overrides:
        raise ConfigError(f"prepare {recipe}: --set {overrides[0]}: a recipe's settings stand in its TOML. Copy it, change it, and name the copy")
    else:
        from ham_dist.data.engine import Machine, parse_size
        from ham_dist.data.prepare import prepare as prepare_data
        from ham_dist.data.recipe import load_recipe

        machine = Machine(
            memory=parse_size(memory) if memory is not None else Machine.memory, threads=threads, spill=spill, engine=engine, master=master
        )
        chosen = load_recipe(recipe)
        if max_rejected is not None:
            chosen = chosen.model_copy(update={"max_rejected": max_rejected})
        prepare_data(chosen, raw, out, machine=machine)
    _describe(out)


@app.command()
def train(
    run: Annotated[str | None, typer.Argument(metavar="RUN.toml", help="Settings of the run; without them, the demo run.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, over the file's; once for each.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run; without one, a new one under runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir; starts it where there is none.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Say which rank would hold what, and what it costs; nothing is allocated.")] = False,
    topology: Annotated[str | None, typer.Option(metavar="RANKSxMEMORY", help="With --plan-only: ranks to plan for, such as 8xA100-80GB.")] = None,
) -> None:
    """Do a whole run: pretrain, search, slice, retrain, export. On one process; torchrun and torchx start it on many.

    Without RUN.toml it generates data with planted truth and shows the whole flow in a minute. SIGTERM saves a checkpoint and exits with 75.

    \b
    Example:
      ham-dist train launch/runs/movielens_dcnv2.toml --set seed=1 --run-dir runs/first
      ham-dist train --run-dir runs/first --resume
      torchx run dist.ddp -j 1x8 ham_dist/train.py -- launch/runs/movielens_dcnv2.toml --set=seed=1 --set=search.epochs=5
      ham-dist train launch/runs/movielens_dcnv2.toml --plan-only --topology 8xA100-80GB

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
    settings = load_run(run or DEMO, overrides or [])
    if plan_only:
        _print_plan(settings, topology)
    elif topology is not None:
        raise ConfigError(f"train --topology {topology}: is what to plan for, and a run takes the ranks that there are. Give --plan-only with it")
    else:
        train_run(settings, run_dir, resume)


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
    _describe(out)


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
def inspect(
    path: Annotated[Path, typer.Argument(help="Folder of prepared data, of a run, or of a bundle.")],
    width: Annotated[int | None, typer.Option(min=1, help="Of data: count the bytes of tables this wide; model.base_width without it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Of data: the same figures as JSON.")] = False,
) -> None:
    """Say what a folder holds. Data is read once through: how its ids are spread, and whether the splits hold the same ones.

    \b
    Example:
      ham-dist inspect runs/first
      ham-dist inspect data/movielens-1m --width 8 --json
    """
    from ham_dist.config.schema import ModelSettings
    from ham_dist.describe import describe_look, holds_data

    if not holds_data(path):
        if as_json or width is not None:
            raise ConfigError(f"inspect {path}: is no prepared data, and --width and --json are for that. Leave them out")
        _describe(path)
        return
    from ham_dist.data.look import look_at
    from ham_dist.data.manifest import Manifest

    look = look_at(path, Manifest.load(path), width or ModelSettings().base_width)
    if as_json:
        typer.echo(look.model_dump_json(indent=1))
    else:
        _describe(path)
        _print(describe_look(look))


@app.command()
def generate(
    kind: Annotated[Literal["criteo-text"], typer.Argument(help="Text in the format of Criteo's click logs.")],
    rows: Annotated[int, typer.Option(min=1, help="Rows in all.")],
    out: Annotated[Path, typer.Option(help="New file, gzipped where it ends in .gz; with --days, a new folder.")],
    days: Annotated[int | None, typer.Option(min=1, help="Spread over files day_0, day_1, ... in the folder OUT.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the rows.")] = 0,
    gzipped: Annotated[bool, typer.Option("--gzip", help="With --days: day_0.gz, day_1.gz, ...")] = False,
) -> None:
    """Write raw text that stands in for licensed click logs, to measure preparation at size.

    Its counts of values, and how often they are missing, are those of Criteo's Kaggle file; what it says of clicks is made up. `ham-dist prepare
    synthetic` makes data for training.

    \b
    Example:
      ham-dist generate criteo-text --rows 1000000 --out criteo/train.txt
      ham-dist generate criteo-text --rows 4000000 --days 24 --gzip --out criteo-days
    """
    from ham_dist.data.criteo_text import write_criteo_days, write_criteo_file

    if days is not None:
        write_criteo_days(out, rows, days, seed=seed, gzipped=gzipped)
    elif gzipped:
        raise ConfigError(f"generate {kind}: --gzip is for --days; of one file the name decides. Give --out {out}.gz, and leave --gzip out")
    else:
        write_criteo_file(out, rows, seed=seed)
    typer.echo(f"{rows:,} rows in {out}")


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


def _describe(path: Path) -> None:
    """Print what `path` says of itself, without reading through it."""
    from ham_dist.describe import describe

    _print(describe(path))


def _print_plan(settings: Any, topology: str | None) -> None:
    from ham_dist.backend import require_backend

    require_backend()
    from ham_dist.plan import describe_plan

    _print(describe_plan(settings, topology), width=150)


def _print(parts: Iterable[Any], width: int = 120) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else width)
    for part in parts:
        console.print(part)


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
