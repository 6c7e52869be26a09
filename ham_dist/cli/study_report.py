"""The command `ham-dist study report`."""

from pathlib import Path
from typing import Annotated

import typer

from ham_dist.cli.printing import say


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the study, finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for the report; an earlier report in it is replaced [DIR/report]."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="ARM", help="Arm that the others are compared with [`ham`, or else the first arm]."
        ),
    ] = None,
) -> None:
    """Write tables, figures and an HTML page of a study's results.

    It shows the results so far and what is missing. AUCs are those on test after `ham-dist study test`, and
    those on validation before. Tables are written as Markdown, CSV and LaTeX, figures as SVG.

    \b
    Example:
      ham-dist study report studies/paper-fig3
      ham-dist study report studies/ablation --reference best --out reports/ablation
    """
    from ham_dist.study.page import PAGE, write_study_report

    out = out or folder / "report"
    for line in write_study_report(folder, out, reference=reference):
        say(line)
    say(f"report in {out / PAGE}")
