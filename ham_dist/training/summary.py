"""The tables that a run ends with: what each field keeps, and what the narrow model costs and reaches beside the supernet."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from ham_dist.embedding.table_size import TableSize


@dataclass(frozen=True)
class ModelResult:
    """What one model reaches and costs.

    auc, logloss:         on the test split.
    embedding_parameters: numbers in its tables, at searched widths.
    embedding_bytes:      of its tables.
    dense_parameters:     numbers outside the tables.
    """

    auc: float
    logloss: float
    embedding_parameters: int
    embedding_bytes: int
    dense_parameters: int


def print_summary(sizes: Sequence[TableSize], before: ModelResult, after: ModelResult, console: Console | None = None) -> None:
    """Print both tables, on standard output by default.

    before: the pretrained supernet; after: the retrained narrow model.
    """
    # Without a terminal rich assumes 80 columns and would cut numbers off.
    console = console or Console(width=None if Console().is_terminal else 120)
    console.print(_field_table(sizes))
    console.print(_model_table(before, after))


def _field_table(sizes: Sequence[TableSize]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Columns kept", title_justify="left", show_footer=True)
    totals = {
        "field": "all",
        "rows": f"{sum(size.rows for size in sizes):,}",
        "base width": str(sum(size.base_width for size in sizes)),
        "kept columns": str(sum(size.searched_width for size in sizes)),
        "MB before": _megabytes(sum(size.bytes_before for size in sizes)),
        "MB after": _megabytes(sum(size.bytes_after for size in sizes)),
    }
    for name, total in totals.items():
        table.add_column(name, total, justify="left" if name == "field" else "right")
    for size in sizes:
        numbers = f"{size.rows:,}", str(size.base_width), str(size.searched_width), _megabytes(size.bytes_before), _megabytes(size.bytes_after)
        table.add_row(size.field, *numbers)
    return table


def _model_table(before: ModelResult, after: ModelResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Test split", title_justify="left")
    table.add_column("")
    for name in ("supernet", "narrow", "change"):
        table.add_column(name, justify="right")
    table.add_row("AUC", f"{before.auc:.4f}", f"{after.auc:.4f}", f"{after.auc - before.auc:+.4f}")
    table.add_row("log loss", f"{before.logloss:.4f}", f"{after.logloss:.4f}", f"{after.logloss - before.logloss:+.4f}")
    for name, old, new in (
        ("embedding parameters", before.embedding_parameters, after.embedding_parameters),
        ("dense parameters", before.dense_parameters, after.dense_parameters),
        ("embedding bytes", before.embedding_bytes, after.embedding_bytes),
    ):
        table.add_row(name, f"{old:,}", f"{new:,}", f"{(new - old) / old:+.1%}" if old else "")
    return table


def _megabytes(count: int) -> str:
    """Millions of bytes, with as many digits as small tables need."""
    return f"{count / 1e6:,.3f}"
