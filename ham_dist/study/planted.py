"""The table of searches on generated data: kept columns against the planted truth."""

from collections.abc import Sequence
from statistics import fmean, median

from ham_dist.study.evidence import ARM, count_text
from ham_dist.study.outcomes import Outcome
from ham_dist.study.statistics import spearman
from ham_dist.study.tables import Column, Table, Value


def planted_table(outcomes: Sequence[Outcome]) -> Table:
    """Returns, by arm on generated data, what was kept of noise fields, and the rank correlation with truth.

    The truth is the number of columns that each field needs, `data.synthetic.planted_ranks`.
    """
    arms: dict[tuple[str, ...], list[tuple[list[int], list[int]]]] = {}
    for outcome in outcomes:
        if outcome.size.is_budget and outcome.kept_columns is not None and (truth := _truth(outcome)):
            kept = [outcome.kept_columns.get(field, 0) for field in truth]
            key = (*outcome.place, outcome.size.label, outcome.arm)
            arms.setdefault(key, []).append((list(truth.values()), kept))
    rows: list[list[Value]] = []
    for arm, found in arms.items():
        noise = [
            sum(count for rank, count in zip(truth, kept, strict=True) if not rank) for truth, kept in found
        ]
        lost = [
            sum(not count for rank, count in zip(truth, kept, strict=True) if rank) for truth, kept in found
        ]
        ranks = [spearman(truth, kept) for truth, kept in found]
        known = [rank for rank in ranks if rank is not None]
        rows.append(
            [
                *arm, fmean(noise), fmean(lost),
                median(known) if known else None, min(known) if known else None, len(found),
            ]
        )  # fmt: skip
    columns = (
        *ARM,
        Column("columns of noise fields", "noise_columns", count_text),
        Column("needed fields lost", "fields_lost", count_text),
        Column("Spearman, median", "spearman_median", lambda value: f"{value:.3f}"),
        Column("lowest", "spearman_lowest", lambda value: f"{value:.3f}"),
        Column("runs", "runs", count_text),
    )
    note = (
        "Generated data, of which the number of columns that each field needs is known. Means over the runs; "
        "Spearman's rank correlation is between needed and kept columns of the fields, and is not defined "
        "where all fields keep the same number."
    )
    return Table("planted", "Planted truth", columns, rows, note)


def _truth(outcome: Outcome) -> dict[str, int] | None:
    """The planted ranks by field; None if the data is not generated."""
    data = outcome.settings.get("data", {})
    if data.get("path") is not None or "synthetic" not in data:
        return None
    return {f"field_{number}": rank for number, rank in enumerate(data["synthetic"]["planted_ranks"])}
