"""Commands for studies: `ham-dist study FILE.toml` and its subcommands."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ham_dist.cli.printing import print_parts, say
from ham_dist.cli.study_report import report
from ham_dist.errors import ConfigError


class _RunsByDefault(TyperGroup):
    """A group in which `ham-dist study FILE.toml` is `ham-dist study run FILE.toml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the name of the default command, unless the first argument names a command."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args.insert(0, "run")
        return list(super().parse_args(ctx, args))


study = typer.Typer(
    cls=_RunsByDefault,
    no_args_is_help=True,
    help="Run a grid of data, models, seeds, methods and targets, and collect its results.",
)


study.command()(report)


_Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="NAME=DIR",
        help="Folder of prepared data of the study, instead of the one in its file; may be repeated. "
        "{seed} in it stands for the seed.",
    ),
]


@study.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="Settings of the study.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study; a study that it holds is resumed.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Worker processes; each has an equal part of the cores.")
    ] = 1,
    data: _Data = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the grid, and run nothing.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed branches again.")] = False,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Folder of another study, whose finished branches with the same settings and data are taken "
            "over with their models; may be repeated.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=VALUE[,VALUE]",
            help="Run a part of the study: branches with these seeds, models, arms or data, such as "
            "model=dcnv2 or seed=0,1; may be repeated.",
        ),
    ] = None,
    is_worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Run the branches of a study that are not finished yet.

    The same command resumes a study that was stopped or killed, on this machine or on several that share the
    folder. docs/study.md describes the file and the results.

    \b
    Example:
      ham-dist study launch/studies/smoke.toml --plan
      ham-dist study launch/studies/smoke.toml --out studies/smoke --workers 2
    """
    from ham_dist.backend import require_backend
    from ham_dist.study.grid import open_study

    opened = open_study(file, _folders(data or []))
    if out is None and not plan:
        raise ConfigError("study: the folder of the study is missing. Give --out DIR, or --plan")
    if out is not None:
        require_backend()
    if plan:
        from ham_dist.cli.study_plan import describe_grid

        print_parts(describe_grid(opened, out), width=150)
        return
    from ham_dist.study.folder import StudyFolder
    from ham_dist.study.selection import selection

    assert out is not None
    folder = StudyFolder(out, opened, selection(only or [], opened.groups))
    if is_worker:
        from ham_dist.study.pool import end_with_parent
        from ham_dist.study.worker import work

        end_with_parent()
        work(folder)
    else:
        same = [f"--data={option}" for option in data or []] + [f"--only={option}" for option in only or []]
        _run(folder, file, workers, same, reuse or [], retry=retry)


def _run(
    folder: Any, file: Path, workers: int, options: list[str], reused: list[Path], *, retry: bool
) -> None:
    """Runs the workers of a study, each with `options`, and lists the branches that failed."""
    from ham_dist.study.pool import run_workers
    from ham_dist.study.reuse import reuse

    folder.write_grid()
    folder.collect()
    for source in reused:
        say(f"{reuse(folder, source):,} finished branches are taken over from {source}")
        folder.collect()
    if retry:
        folder.forget_failures()
    command = [
        sys.executable,
        "-m",
        "ham_dist",
        "study",
        "run",
        str(file),
        f"--out={folder.path}",
        "--worker",
    ]
    run_workers(folder, [*command, *options], workers, say)
    for line in (failed := folder.failed()).values():
        say(f"failed: {line['arm']} of {line['group']}: {line['error'].strip().splitlines()[-1]}")
    if failed:
        say(f"failed branches: {len(failed):,}; {folder.results.path} has the errors; --retry repeats them")


@study.command("test")
def score_on_test_split(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a study.")],
    data: _Data = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Score what is finished, although branches are missing.")
    ] = False,
) -> None:
    """Score the models of a finished study on the test split, once, and write tests.jsonl.

    \b
    Example:
      ham-dist study test studies/smoke
    """
    from ham_dist.backend import require_backend

    require_backend()
    from ham_dist.study.scoring import score_on_test

    score_on_test(path, _folders(data or []), say, partial=partial)


def _folders(options: list[str]) -> dict[str, str]:
    """The folders given by `--data NAME=DIR`, by name."""
    folders = {}
    for option in options:
        name, equals, folder = option.partition("=")
        if not (name and equals and folder):
            raise ConfigError(f"--data {option}: expected NAME=DIR, such as --data movielens-1m=data/ml-1m")
        folders[name] = folder
    return folders
