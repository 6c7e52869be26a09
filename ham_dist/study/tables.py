"""One kind of table, written as Markdown, CSV and LaTeX, and shown on a page."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ham_dist.report.grids import Cell, Grid
from ham_dist.report.text import NOTHING

Value = str | int | float | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Heading for readers.
        key: Heading in CSV, for programs.
        text: Text of a value that is not None; CSV has the value itself. None: a column of text.
    """

    name: str
    key: str
    text: Callable[[float], str] | None = None

    def shown(self, value: Value) -> str:
        """The text of a value."""
        if value is None:
            return NOTHING
        return str(value) if isinstance(value, str) or self.text is None else self.text(value)


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
        name: Name of its files, without ending.
        title: Its title.
        columns: Its columns; those of text come first.
        rows: Values by row, one per column.
        note: How to read it.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    note: str = ""

    def where(self, *values: Value) -> "Table":
        """The rows that begin with `values`, without these columns."""
        rows = [row[len(values) :] for row in self.rows if tuple(row[: len(values)]) == values]
        return replace(self, columns=self.columns[len(values) :], rows=rows)

    def texts(self) -> list[list[str]]:
        """The cells as text."""
        return [
            [column.shown(value) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        lines = [
            [_markdown(column.name) for column in self.columns],
            ["---" if column.text is None else "---:" for column in self.columns],
            *([_markdown(cell) for cell in row] for row in self.texts()),
        ]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {_markdown(self.title)}\n\n{body}\n" + (
            f"\n{_markdown(self.note)}\n" if self.note else ""
        )

    def csv(self) -> str:
        """The values, not rounded, as CSV by RFC 4180; an unknown value is empty."""
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow([column.key for column in self.columns])
        writer.writerows(self.rows)
        return file.getvalue()

    def latex(self) -> str:
        """The table as a tabular of LaTeX; needs the package booktabs."""
        kinds = "".join("l" if column.text is None else "r" for column in self.columns)
        lines = [
            f"% {_one_line(self.title)}",
            f"\\begin{{tabular}}{{{kinds}}}",
            "\\toprule",
            _latex_row([column.name for column in self.columns]),
            "\\midrule",
            *(_latex_row(row) for row in self.texts()),
            "\\bottomrule",
            "\\end{tabular}",
        ]
        return "\n".join(lines) + "\n"

    def grid(self) -> Grid:
        """The table for a page of HTML; a cell's tooltip has the value that is not rounded."""
        rows = [
            [
                Cell(text, str(value) if isinstance(value, float) else "")
                for text, value in zip(texts, row, strict=True)
            ]
            for texts, row in zip(self.texts(), self.rows, strict=True)
        ]
        texts = sum(column.text is None for column in self.columns)
        return Grid(self.title, [column.name for column in self.columns], rows, texts=texts)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", _one_line(text))


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_",
    "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "\N{EN DASH}": "--", "\N{MINUS SIGN}": "$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$", '"': "''",
}  # fmt: skip


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in _one_line(text))
    # A minus sign is longer than a hyphen.
    return re.sub(r"^-(?=[0-9.])", "$-$", escaped)


def _latex_row(cells: Sequence[str]) -> str:
    # In front of "[" LaTeX would read "\\" as a command with an option.
    return (
        " & ".join("{}" + _latex(cell) if cell.startswith("[") else _latex(cell) for cell in cells) + r" \\"
    )
