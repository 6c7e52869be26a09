"""The command line. Each command imports its modules when it runs, so that `ham-dist --help` is fast."""

import logging
import os
import signal
from typing import Annotated

import typer

import ham_dist
from ham_dist.cli import bundles, data, packages, runs, serve, study
from ham_dist.cli.failures import EXIT_INTERRUPTED, EXIT_USERS, Commands
from ham_dist.io.huge_pages import use_huge_pages
from ham_dist.io.openmp import limit_spinning
from ham_dist.io.printable import printable

app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def main() -> None:
    """Entry point of the program `ham-dist`."""
    _run(None)


def train_command(arguments: list[str]) -> None:
    """Runs `ham-dist train ARGUMENTS` for scripts started by torchrun, and ends the process."""
    _run(["train", *arguments])


def _run(arguments: list[str] | None) -> None:
    try:
        app(arguments, prog_name="ham-dist")
    finally:
        # Otherwise a second Ctrl-C while Python shuts down would print a traceback.
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))


class _PrintableFormatter(logging.Formatter):
    """Formats a record as its message, with control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ham-dist {ham_dist.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="HAM_DIST_DEBUG", help="Show the traceback of every error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find how many columns each embedding table of a CTR model needs, and export the smaller model.

    `ham-dist COMMAND --help` explains a command. `ham-dist train` without arguments is a demo on generated
    data.
    """
    use_huge_pages()
    limit_spinning()
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("ham_dist").setLevel(logging.INFO)


for command in (
    data.fetch,
    data.prepare,
    runs.train,
    bundles.export,
    bundles.verify,
    bundles.apply_delta,
    packages.package,
    runs.score,
    serve.serve,
    serve.activate,
    runs.report,
    data.inspect,
    data.generate,
):
    app.command()(command)
app.add_typer(study.study, name="study")


@app.command("doctor")
def doctor_command() -> None:
    """Check versions, devices and backends.

    For each problem it prints how to fix it.

    \b
    Example:
      ham-dist doctor
    """
    from ham_dist.cli.doctor import report

    if not report():
        raise typer.Exit(EXIT_USERS)
