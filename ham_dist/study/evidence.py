"""The tables of a study."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from ham_dist.config.units import size_text
from ham_dist.study.comparison import Cell, Comparison, Endpoint
from ham_dist.study.outcomes import Outcome, Place
from ham_dist.study.statistics import Paired
from ham_dist.study.tables import Column, Table, Value

ALL_SIZES = "mean of sizes"
"""Size of the rows with the primary endpoint."""
SIGNIFICANT = 0.05
NOT_OF_AN_ARM = ("seed", "search.targets", "data.path", "checkpoint.", "ranks.")
"""Settings that differ between the branches of one arm, or do not change results."""


def auc_text(value: float) -> str:
    """Returns a mean AUC with four digits, as in the paper's tables."""
    return f"{value:.4f}"


def spread_text(value: float) -> str:
    """Returns a standard deviation with one digit more than the mean."""
    return f"{value:.5f}"


def difference_text(value: float) -> str:
    """Returns a difference of AUCs with its sign."""
    return f"{value:+.4f}"


def p_text(value: float) -> str:
    """Returns a p-value with four digits."""
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def count_text(value: float) -> str:
    """Returns a count, or the mean of counts that differ between seeds, with one digit."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


PLACE = (Column("data", "data"), Column("model", "model"))
ARM = (*PLACE, Column("size", "size"), Column("arm", "arm"))
DIFFERENCE = (
    Column("low", "low", difference_text),
    Column("high", "high", difference_text),
)


def main_table(comparison: Comparison) -> Table:
    """Returns AUC by model, size and arm, with differences to the reference, and the primary endpoints."""
    reference = comparison.reference or "the reference"
    split = comparison.measure
    rows: list[list[Value]] = []
    for place in comparison.results.places:
        for entry in comparison.endpoints(place):
            size = f"{ALL_SIZES}, at equal bytes" if entry.equal_bytes else ALL_SIZES
            rows.append([*place, size, entry.arm, *_quality(entry), *_difference(entry.difference, entry)])
        for cell in comparison.cells(place):
            rows.append([*place, cell.size.label, cell.arm, *_quality(cell), *_difference(cell.difference)])
    columns = (
        *ARM,
        Column(f"{split} AUC", f"{split}_auc", auc_text), Column("sd", "sd", spread_text),
        Column("n", "n", count_text), Column("best of n", "best", auc_text),
        Column("failures", "failures", count_text),
        Column(f"over {reference}", "difference", difference_text), *DIFFERENCE,
        Column(f"{reference} wins", "reference_wins", count_text), Column("pairs", "pairs", count_text),
        Column("p", "p", p_text), Column("p (Holm)", "p_holm", p_text),
    )  # fmt: skip
    return Table(
        "main",
        f"{split.capitalize()} AUC",
        columns,
        rows,
        f"Mean and standard deviation (sd) over n seeds. 'over {reference}' is the mean difference to "
        f"{reference} over the seeds that both have, with its 95 % interval (paired t). Arms without a "
        f"budget of columns are compared with {reference} at equal bytes. The primary endpoint is the row "
        f"'{ALL_SIZES}': per seed, the mean over the sizes of {reference}; only there p is corrected (Holm, "
        "over all rivals of the model). The best of n is chosen by the AUC itself and is no estimate of "
        "quality.",
    )


def _quality(entry: Cell | Endpoint) -> list[Value]:
    failures = entry.failures if isinstance(entry, Cell) else None
    if (mean := entry.mean) is None:
        return [None, None, 0, None, failures]
    return [mean.mean, mean.sd, mean.n, mean.best if isinstance(entry, Cell) else None, failures]


def _difference(found: Paired | None, entry: Endpoint | None = None) -> list[Value]:
    """Cells of a difference: mean, interval, wins of the reference, pairs, p, corrected p."""
    if found is None:
        return [None] * 7
    p: Value = found.p if found.p is not None else found.no_test
    corrected = entry.p_holm if entry is not None else None
    return [found.mean, found.low, found.high, found.losses, found.n, p, corrected]


def size_table(comparison: Comparison) -> Table:
    """Returns size and cost by model, size and arm: means over the seeds."""
    rows: list[list[Value]] = []
    for place in comparison.results.places:
        for cell in comparison.cells(place):
            done = [outcome for outcome in cell.outcomes if outcome.error is None]
            rows.append(
                [
                    *place, cell.size.label, cell.arm,
                    *(_mean(done, name) for name in (
                        "columns", "embedding_bytes", "counted_bytes", "embedding_parameters",
                        "dense_parameters", "all_seconds", "weight_steps",
                    )),
                    len(cell.outcomes), cell.failures,
                ]
            )  # fmt: skip
    columns = (
        *ARM,
        Column("columns", "columns", count_text), Column("bytes", "embedding_bytes", _bytes_text),
        Column("stored bytes", "stored_bytes", _bytes_text),
        Column("embedding parameters", "embedding_parameters", count_text),
        Column("dense parameters", "dense_parameters", count_text),
        Column("seconds", "seconds", lambda value: f"{value:,.1f}"),
        Column("weight steps", "weight_steps", count_text),
        Column("runs", "runs", count_text), Column("failures", "failures", count_text),
    )  # fmt: skip
    return Table(
        "sizes",
        "Size and cost",
        columns,
        rows,
        "Means over the runs that did not fail. Stored bytes are those of the smallest form in which a "
        "method's tables can be stored. Seconds include pretraining, which the arms of a seed share.",
    )


def equal_bytes_table(comparison: Comparison) -> Table | None:
    """Returns the arms without a budget of columns against the reference at their bytes; None without any."""
    reference, split = comparison.reference, comparison.measure
    rows: list[list[Value]] = []
    for place in comparison.results.places:
        arms = [arm for arm in comparison.rivals(place) if comparison.without_column_budget(place, arm)]
        for cell in comparison.cells(place):
            if cell.arm not in arms or cell.difference is None:
                continue
            done = [outcome for outcome in cell.outcomes if outcome.error is None]
            rows.append(
                [
                    *place, cell.size.label, cell.arm,
                    _mean(done, "counted_bytes"), _stored_forms(done), _mean(done, "dense_parameters"),
                    cell.mean.mean if cell.mean else None, *_difference(cell.difference)[:6],
                ]
            )  # fmt: skip
    if not rows:
        return None
    columns = (
        *ARM,
        Column("bytes", "bytes", _bytes_text), Column("forms", "forms", str),
        Column("dense parameters", "dense_parameters", count_text),
        Column(f"{split} AUC", f"{split}_auc", auc_text),
        Column(f"over {reference}", "difference", difference_text), *DIFFERENCE,
        Column(f"{reference} wins", "reference_wins", count_text), Column("pairs", "pairs", count_text),
        Column("p", "p", p_text),
    )  # fmt: skip
    return Table(
        "equal_bytes",
        "At equal bytes",
        columns,
        rows,
        f"Per seed, {reference} at the same bytes is read from the line through its sizes, over the "
        "logarithm of bytes. The line is not extended: above it, the largest size counts, which has fewer "
        "bytes; below it there is no pair.",
    )


def supernet_table(comparison: Comparison) -> Table | None:
    """Returns every arm against the arms with all columns; None without such an arm."""
    rows: list[list[Value]] = []
    for place in comparison.results.places:
        for cell, other, found in comparison.over_supernet(place):
            wins: list[Value] = [found.wins, found.n, found.p if found.p is not None else found.no_test]
            rows.append([*place, cell.size.label, cell.arm, other, found.mean, found.low, found.high, *wins])
    if not rows:
        return None
    columns = (
        *ARM, Column("all columns", "supernet"),
        Column("over it", "difference", difference_text), *DIFFERENCE,
        Column("wins", "wins", count_text), Column("pairs", "pairs", count_text), Column("p", "p", p_text),
    )  # fmt: skip
    return Table(
        "supernet",
        "Against all columns",
        columns,
        rows,
        "AUC of the arm less that of the model with all columns, with the 95 % interval (paired t).",
    )


def gain_table(comparison: Comparison) -> Table | None:
    """Returns the mean differences to the reference, models side by side; None without a rival.

    The form of the HAM paper's Table 2. A `*` marks p < 0.05 in the paired t-test of the cell, not corrected.
    """
    models = list(dict.fromkeys(model for _, model in comparison.results.places))
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for place in comparison.results.places:
        for cell in comparison.cells(place):
            found = cell.difference
            if found is not None and found.mean is not None:
                mark = "*" if found.p is not None and found.p < SIGNIFICANT else ""
                line = rows.setdefault((place[0], cell.size.label, cell.arm), {})
                line[place[1]] = difference_text(found.mean) + mark
    if not rows:
        return None
    columns = (
        Column("data", "data"), Column("size", "size"), Column("arm", "arm"),
        *(Column(model, model, difference_text) for model in models),
    )  # fmt: skip
    return Table(
        "gains",
        f"Gain over {comparison.reference}",
        columns,
        [[*key, *(line.get(model) for model in models)] for key, line in rows.items()],
        "Mean differences. A * marks p < 0.05 in a two-sided paired t-test of the cell, without correction.",
    )


def settings_table(outcomes: Sequence[Outcome]) -> Table:
    """Returns the settings in which the arms differ, one row per setting and arm."""
    together: dict[tuple[Any, ...], dict[str, dict[str, str]]] = {}
    values: dict[tuple[str, str], set[str]] = {}
    for outcome in outcomes:
        if outcome.size.unit == "supernet":  # its settings of search and retraining have no effect
            continue
        found = {key: json.dumps(value, ensure_ascii=False) for key, value in _flat(outcome.settings)}
        found = {key: text for key, text in found.items() if not key.startswith(NOT_OF_AN_ARM)}
        together.setdefault((outcome.place, outcome.repetition), {})[outcome.arm] = found
        for key, text in found.items():
            values.setdefault((key, outcome.arm), set()).add(text)
    # Compared within one model and seed: settings of the model are no options of an arm.
    different = {
        key
        for arms in together.values()
        for key in {name for settings in arms.values() for name in settings}
        if len({settings.get(key) for settings in arms.values()}) > 1
    }
    rows: list[Sequence[Value]] = [
        [key, arm, " or ".join(sorted(found))] for (key, arm), found in values.items() if key in different
    ]
    rows.sort(key=lambda row: str(row[0]))
    columns = (Column("setting", "setting"), Column("arm", "arm"), Column("value", "value"))
    return Table("settings", "Settings in which the arms differ", columns, rows)


def version_table(outcomes: Sequence[Outcome]) -> Table:
    """Returns commits, machines and versions of packages, with the number of branches of each."""
    counts: dict[tuple[str, str, str], int] = {}
    for outcome in outcomes:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(outcome.versions.items()))
        key = (outcome.commit or "unknown", outcome.host or "unknown", versions or "unknown")
        counts[key] = counts.get(key, 0) + 1
    columns = (
        Column("commit", "commit"), Column("host", "host"), Column("versions", "versions"),
        Column("branches", "branches", count_text),
    )  # fmt: skip
    return Table(
        "versions", "Commits and versions", columns, [[*key, count] for key, count in counts.items()]
    )


def failure_table(outcomes: Sequence[Outcome]) -> Table:
    """Returns the branches that ended with an error."""
    rows: list[list[Value]] = [
        [*outcome.place, outcome.size.label, outcome.arm, outcome.seed, " ".join(outcome.error.split())]
        for outcome in outcomes
        if outcome.error is not None
    ]
    return Table(
        "failures", "Failures", (*ARM, Column("seed", "seed", str), Column("error", "error", str)), rows
    )


def unequal_limits(comparison: Comparison, place: Place) -> list[str]:
    """Returns the arms that may train for another number of epochs than the reference, as sentences.

    Epochs of search and of retraining count together. The epochs that an arm takes follow from early
    stopping, and so are a result.
    """
    limits: dict[str, set[int]] = {}
    for cell in comparison.cells(place):
        if cell.size.is_budget:
            limits.setdefault(cell.arm, set()).update(_epoch_limits(cell.outcomes))
    own = limits.get(comparison.reference, set())
    return [
        f"{arm} may train for {_either(found)} epochs, {comparison.reference} for {_either(own)}"
        for arm, found in limits.items()
        if own and found and found != own
    ]


def _epoch_limits(outcomes: Iterable[Outcome]) -> set[int]:
    """The largest numbers of epochs of search and retraining that the settings of outcomes allow."""
    found = set()
    for outcome in outcomes:
        search, retrain = (outcome.settings.get(name, {}) for name in ("search", "retrain"))
        if "max_epochs" in retrain:
            searched = search.get("epochs", 0) if (outcome.epochs or {}).get("search") else 0
            found.add(searched + retrain.get("column_dropout_epochs", 0) + retrain["max_epochs"])
    return found


def _either(counts: Iterable[int]) -> str:
    return " or ".join(f"{count:,}" for count in sorted(counts))


def _mean(outcomes: Sequence[Outcome], name: str) -> float | None:
    values = [value for outcome in outcomes if (value := getattr(outcome, name)) is not None]
    return fmean(values) if values else None


def _bytes_text(value: float) -> str:
    return size_text(round(value))


def _stored_forms(outcomes: Sequence[Outcome]) -> str | None:
    """The mean bytes of each form, such as `bitmap 1.2 kB, csr 1.5 kB`."""
    forms: dict[str, list[int]] = {}
    for outcome in outcomes:
        if isinstance(outcome.stored_bytes, dict):
            for name, count in outcome.stored_bytes.items():
                forms.setdefault(name, []).append(count)
    return ", ".join(f"{name} {_bytes_text(fmean(found))}" for name, found in forms.items()) or None


def _flat(tree: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value
