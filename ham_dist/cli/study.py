"""Commands for studies: `ham-dist study FILE.toml` and its subcommands."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ham_dist.cli.printing import print_parts
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


@study.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="Settings of the study.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME=DIR",
            help="Folder of prepared data of the study, instead of the one in its file; may be repeated. "
            "{seed} in it stands for the seed.",
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the grid, and run nothing.")] = False,
) -> None:
    """Run the branches of a study that are not finished yet.

    \b
    Example:
      ham-dist study launch/studies/smoke.toml --plan
    """
    from ham_dist.cli.study_plan import describe_grid
    from ham_dist.study.grid import open_study

    opened = open_study(file, _folders(data or []))
    if plan:
        print_parts(describe_grid(opened), width=150)


def _folders(options: list[str]) -> dict[str, str]:
    """The folders given by `--data NAME=DIR`, by name."""
    folders = {}
    for option in options:
        name, equals, folder = option.partition("=")
        if not (name and equals and folder):
            raise ConfigError(f"--data {option}: expected NAME=DIR, such as --data movielens-1m=data/ml-1m")
        folders[name] = folder
    return folders
