"""Commands about runs: training, the bundles that come of it, their scores, and reports."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ham_dist.cli.printing import describe_folder, print_parts, say
from ham_dist.errors import ConfigError
from ham_dist.io.printable import printable


def train(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN.toml", help="Settings of the run; without them, the demo run."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting, over the file's; once for each."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run; without one, a new one under runs/.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --run-dir; starts it where there is none.")
    ] = False,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only", help="Say which rank would hold what, and what it costs; nothing is allocated."
        ),
    ] = False,
    topology: Annotated[
        str | None,
        typer.Option(
            metavar="RANKSxMEMORY", help="With --plan-only: ranks to plan for, such as 8xA100-80GB."
        ),
    ] = None,
) -> None:
    """Do a whole run: pretrain, search, slice, retrain, export. On one process; torchrun and torchx start it on many.

    Without RUN.toml it generates data with planted truth and shows the whole flow in a minute. SIGTERM saves a checkpoint and exits with 75.

    \b
    Example:
      ham-dist train launch/runs/movielens_dcnv2.toml --set seed=1 --run-dir runs/first
      ham-dist train --run-dir runs/first --resume
      torchx run dist.ddp -j 1x8 ham_dist/train.py -- launch/runs/movielens_dcnv2.toml --set=seed=1 --set=search.epochs=5
      ham-dist train launch/runs/movielens_dcnv2.toml --plan-only --topology 8xA100-80GB

    Outside of ham_dist's repository, torchx needs its scheduler named: torchx run -s local_cwd dist.ddp -j 1x8 -m ham_dist.train

    torchx refuses an option that it sees twice, so several settings are written --set=KEY=VALUE there.
    """
    from ham_dist.config.load import DEMO, load_run
    from ham_dist.training.run_folder import RunFolder

    if resume and run_dir is None:
        raise ConfigError("train --resume: needs the folder of the run to go on with. Give --run-dir FOLDER")
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 and run_dir is None:
        raise ConfigError(
            "train: ranks that are started again must find their run, which has no fixed name by itself. Give --run-dir FOLDER"
        )
    # torchrun repeats the command as it was after a rank has died.
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if resume and run is None and run_dir is not None and (folder := RunFolder(run_dir)).is_run:
        settings = folder.read_settings(overrides or [])
    else:
        settings = load_run(run or DEMO, overrides or [])
    if plan_only:
        _print_plan(settings, topology)
    elif topology is not None:
        raise ConfigError(
            f"train --topology {topology}: is what to plan for, and a run takes the ranks that there are. Give --plan-only with it"
        )
    else:
        from ham_dist.backend import require_backend

        require_backend()
        from ham_dist.run import run_stages  # after the check, since it imports torchrec

        run_stages(settings, run_dir, resume=resume)


def export(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="New folder for the bundle.")],
    precision: Annotated[str, typer.Option(help="Type of the tables: fp32 or fp16.")] = "fp32",
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
    describe_folder(out)


def score(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    records: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Raw records (a file or folder in the recipe's format, with or without the label, or Parquet), or ids in Parquet.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="File for the probabilities: .txt, .csv or .parquet. An existing file is replaced at the end."
        ),
    ],
    values: Annotated[
        Literal["auto", "ids", "raw"],
        typer.Option(help="Content of Parquet whose columns are all whole numbers: ids or raw values."),
    ] = "auto",
    id_column: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="COLUMN",
            help="Column of INPUT to write in front of each probability (.csv, .parquet).",
        ),
    ] = None,
) -> None:
    """Write one probability for each record of INPUT, in its order.

    Raw records are read by the recipe of the training data, which the bundle holds. A line that cannot be read ends the
    command: left out, it would shift the probabilities. The share of unknown values of each field is printed next to the share
    in the validation split, with a warning where it is higher by 10 percentage points and more than chance.

    \b
    Example:
      ham-dist score runs/first/columns-28/bundle data/movielens-1m/test --out probabilities.csv
      ham-dist score bundles/first new.tsv.gz --out probabilities.csv --id id
    """
    from ham_dist.cli.scores import describe_unknown
    from ham_dist.export.scorer import score as score_records

    scored = score_records(bundle, records, out, values, id_column=id_column)
    say(f"{scored.rows:,} probabilities in {out}")
    print_parts(describe_unknown(scored))
    for warning in scored.warnings:
        typer.echo(f"ham-dist: warning: {printable(warning)}", err=True)
    if scored.warnings:
        typer.echo(
            "  Compare a line of INPUT with one of the training files: separators, quotes, how numbers and dates are written.",
            err=True,
        )


def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN_DIR...", help="Folders of runs, finished or not.")
    ],
    out: Annotated[str, typer.Option(metavar="FILE.html", help="File for the report.")],
    with_data: Annotated[
        bool | None,
        typer.Option(
            "--data/--no-data",
            help="Look at the data of the runs too, which reads it once through; without either, at small data alone.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there already.")
    ] = False,
) -> None:
    """Show one run, or several side by side, as figures and tables: one HTML file that needs nothing else.

    \b
    Example:
      ham-dist report runs/first --out first.html
      ham-dist report runs/ham runs/magnitude runs/uniform --out methods.html --no-data
      ham-dist report runs/going-on --out going-on.html --overwrite
    """
    from ham_dist.report.page import write_report

    write_report(runs, out, with_data=with_data, overwrite=overwrite)
    say(f"report of {len(runs):,} {'run' if len(runs) == 1 else 'runs'} in {out}")


def _print_plan(settings: Any, topology: str | None) -> None:
    from ham_dist.backend import require_backend

    require_backend()
    from ham_dist.cli.plan import describe_plan

    print_parts(describe_plan(settings, topology), width=150)
