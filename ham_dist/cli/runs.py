"""Commands for runs: train, score and report."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ham_dist.cli.printing import print_parts, say
from ham_dist.errors import ConfigError
from ham_dist.io.printable import printable


def train(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN.toml", help="Settings of the run (default: the demo run)."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of RUN.toml; may be repeated."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run (default: a new folder in runs/).")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume the run in --run-dir, or start it if there is none."),
    ] = False,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only",
            help="Print the sharding plan with its memory and communication. Allocates no table.",
        ),
    ] = False,
    topology: Annotated[
        str | None,
        typer.Option(
            metavar="RANKSxMEMORY",
            help="With --plan-only: ranks to plan for (default: those of this job), such as 8xA100-80GB.",
        ),
    ] = None,
) -> None:
    """Run all stages: pretrain, search, slice, retrain, export.

    It runs in one process; use torchrun or torchx for several ranks. Without RUN.toml it runs a demo on
    generated data, which takes about a minute. On SIGTERM it saves a checkpoint and exits with code 75.

    \b
    Example:
      ham-dist train launch/runs/movielens_dcnv2.toml --set seed=1 --run-dir runs/first
      ham-dist train --run-dir runs/first --resume
      torchx run dist.ddp -j 1x8 ham_dist/train.py -- launch/runs/movielens_dcnv2.toml --set=seed=1
      ham-dist train launch/runs/movielens_dcnv2.toml --plan-only --topology 8xA100-80GB

    Outside ham_dist's repository, give torchx a scheduler: torchx run -s local_cwd dist.ddp -j 1x8 -m
    ham_dist.train

    torchx rejects a repeated option, so with torchx write settings as --set=KEY=VALUE.
    """
    from ham_dist.config.load import DEMO, load_run
    from ham_dist.training.run_folder import RunFolder

    if resume and run_dir is None:
        raise ConfigError("train --resume: the folder of the run to resume is missing. Give --run-dir FOLDER")
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 and run_dir is None:
        raise ConfigError(
            "train: with restarts (torchrun --max-restarts), the run's folder must have a name "
            "that restarted ranks know. Give --run-dir FOLDER"
        )
    # After a rank has died, torchrun starts the same command again.
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if resume and run is None and run_dir is not None and (folder := RunFolder(run_dir)).is_run:
        settings = folder.read_settings(overrides or [])
    else:
        settings = load_run(run or DEMO, overrides or [])
    if plan_only:
        _print_plan(settings, topology)
    elif topology is not None:
        raise ConfigError(
            f"train --topology {topology}: works with --plan-only only; a run uses the ranks of its job. "
            "Give --plan-only with it"
        )
    else:
        from ham_dist.backend import require_backend

        require_backend()
        from ham_dist.run import run_stages  # after the check, since it imports torchrec

        run_stages(settings, run_dir, resume=resume)


def score(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    records: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Raw records (file or folder, in the recipe's format or in Parquet, "
            "with or without the label), or ids in Parquet.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="File for the probabilities: .txt, .csv or .parquet. "
            "An existing file is replaced when the new one is complete."
        ),
    ],
    values: Annotated[
        Literal["auto", "ids", "raw"],
        typer.Option(
            help="Meaning of the columns if INPUT is Parquet and all columns are integers: ids or raw values."
        ),
    ] = "auto",
    id_column: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="COLUMN",
            help="Column of INPUT to write before each probability (.csv, .parquet).",
        ),
    ] = None,
) -> None:
    """Write one probability for each record of INPUT, in order.

    Raw records are read by the recipe of the training data, which is stored in the bundle. A line that cannot
    be read is an error, because skipping it would shift the probabilities. For each field, the share of
    unknown values is printed next to that of the validation split, with a warning if it is at least 10
    percentage points higher and the difference is statistically significant.

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
            "  Compare a line of INPUT with a line of the training files: "
            "separators, quotes, formats of numbers and dates.",
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
            help="Include statistics of the data, which is read completely (default: only for small data).",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write an HTML report of one or more runs.

    It is a single file with figures and tables, and shows several runs side by side.

    \b
    Example:
      ham-dist report runs/first --out first.html
      ham-dist report runs/ham runs/magnitude runs/uniform --out methods.html --no-data
      ham-dist report runs/unfinished --out unfinished.html --overwrite
    """
    from ham_dist.report.page import write_report

    write_report(runs, out, with_data=with_data, overwrite=overwrite)
    say(f"report of {len(runs):,} {'run' if len(runs) == 1 else 'runs'} in {out}")


def _print_plan(settings: Any, topology: str | None) -> None:
    from ham_dist.backend import require_backend

    require_backend()
    from ham_dist.cli.plan import describe_plan

    print_parts(describe_plan(settings, topology), width=150)
