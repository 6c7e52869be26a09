"""Tables as Markdown, CSV and LaTeX, and the tables of a study."""

import csv
import io
from pathlib import Path

from ham_dist.report.grids import Cell
from ham_dist.study import evidence
from ham_dist.study.comparison import Comparison
from ham_dist.study.outcomes import read_results
from ham_dist.study.planted import planted_table
from ham_dist.study.tables import Column, Table
from tests.support.study_results import grid, outcome, write_study

TABLE = Table(
    "x",
    "A & B",
    (Column("arm", "arm"), Column("AUC", "auc", "{:.2f}".format), Column("p", "p", "{:.1f}".format)),
    [["ham_p|x*", 0.123456, "one pair"], ["50% {a} \\ $1 #2 ~ ^", None, -0.5]],
    "A note.",
)


def test_markdown_is_escaped() -> None:
    assert TABLE.markdown() == (
        "## A & B\n\n"
        "| arm | AUC | p |\n| --- | ---: | ---: |\n"
        "| ham\\_p\\|x\\* | 0.12 | one pair |\n| 50% {a} \\\\ $1 #2 ~ ^ | \N{EN DASH} | -0.5 |\n"
        "\nA note.\n"
    )


def test_latex_is_escaped() -> None:
    lines = TABLE.latex().splitlines()
    assert lines[:2] == ["% A & B", r"\begin{tabular}{lrr}"]
    assert lines[3] == r"arm & AUC & p \\"
    assert lines[5] == r"ham\_p\textbar{}x* & 0.12 & one pair \\"
    assert lines[6] == (
        r"50\% \{a\} \textbackslash{} \$1 \#2 \textasciitilde{} \textasciicircum{} & -- & $-$0.5 \\"
    )


def test_a_cell_in_brackets_is_no_option_of_latex() -> None:
    table = Table("x", "x", (Column("a", "a"),), [["[3]"]])
    assert r"{}[3] \\" in table.latex()


def test_csv_has_the_whole_values() -> None:
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows == [
        ["arm", "auc", "p"],
        ["ham_p|x*", "0.123456", "one pair"],
        ["50% {a} \\ $1 #2 ~ ^", "", "-0.5"],
    ]


def test_a_page_has_the_whole_values_as_tooltips() -> None:
    grid_of_page = TABLE.grid()
    assert grid_of_page.texts == 1
    assert grid_of_page.rows[0][1] == Cell("0.12", "0.123456")


def test_rows_of_a_model() -> None:
    found = TABLE.where("ham_p|x*")
    assert [column.name for column in found.columns] == ["AUC", "p"]
    assert found.rows == [[0.123456, "one pair"]]


def lost(arm: str, size: int, seed: int) -> float:
    """HAM loses against SAM in every seed."""
    return 0.88 + (0.002 if arm == "sam" else 0.0) + (0.0001 * seed if arm == "ham" else 0.00005 * seed**2)


def study(folder: Path) -> Comparison:
    outcomes = grid(lost, seeds=range(4))
    outcomes += [outcome("pep", seed, 14, auc=0.88 + seed / 1000, stored_bytes=90_000) for seed in range(4)]
    outcomes += [outcome("supernet", seed, None, auc=0.87 + seed / 1000) for seed in range(4)]
    outcomes[0].update(error="DivergedError: the loss\nis not finite", validation_auc=None)
    outcomes[-5]["settings"]["pretrain"] = {"max_epochs": 3}
    return Comparison(read_results(write_study(folder, outcomes)))


def cells(table: Table | None, arm: str, size: str) -> dict[str, object]:
    assert table is not None
    (row,) = table.where("ml", "dcnv2", size, arm).rows
    return dict(zip([column.key for column in table.columns[4:]], row, strict=True))


def test_rows_in_which_ham_loses_stay(tmp_path: Path) -> None:
    row = cells(evidence.main_table(study(tmp_path)), "sam", "28")
    differences = [lost("sam", 28, seed) - lost("ham", 28, seed) for seed in range(4)]
    assert row["difference"] == sum(differences) / 4
    assert (row["reference_wins"], row["pairs"], row["n"], row["failures"]) == (0, 4, 4, 0)
    assert isinstance(row["p"], float)
    assert row["p_holm"] is None, "cells are secondary"


def test_main_table_has_the_endpoint_and_failures(tmp_path: Path) -> None:
    table = evidence.main_table(study(tmp_path))
    endpoint = cells(table, "sam", evidence.ALL_SIZES)
    assert endpoint["pairs"] == 3, "seed 0 of ham failed at size 14"
    assert isinstance(endpoint["p_holm"], float)
    failed = cells(table, "ham", "14")
    assert (failed["failures"], failed["n"], failed["difference"]) == (1, 3, None)
    assert failed["best"] == lost("ham", 14, 3)
    assert cells(table, "pep", f"{evidence.ALL_SIZES}, at equal bytes")["pairs"] == 3


def test_size_table(tmp_path: Path) -> None:
    row = cells(evidence.size_table(study(tmp_path)), "ham", "14")
    assert row == {
        "columns": 14.0,
        "embedding_bytes": 56_000.0,
        "stored_bytes": 56_000.0,
        "embedding_parameters": 14_000.0,
        "dense_parameters": 3.0 * 14**2 + 20 * 14 + 369,
        "seconds": 42.5,
        "weight_steps": 7_200.0,
        "runs": 4,
        "failures": 1,
    }


def test_other_tables(tmp_path: Path) -> None:
    found = study(tmp_path)
    assert cells(evidence.equal_bytes_table(found), "pep", "14")["bytes"] == 90_000
    over = evidence.supernet_table(found)
    assert over is not None
    assert {row[4] for row in over.rows} == {"supernet"}
    gains = evidence.gain_table(found)
    assert gains is not None
    assert ["ml", "28", "sam", "+0.0020*"] in gains.rows
    outcomes = found.results.outcomes
    assert evidence.failure_table(outcomes).rows == [
        ["ml", "dcnv2", "14", "ham", 0, "DivergedError: the loss is not finite"]
    ]
    settings = evidence.settings_table(outcomes)
    assert ["search.method.name", "ham", '"ham"'] in settings.rows
    assert ["pretrain.max_epochs", "pep", "3"] in settings.rows
    assert not any(row[0] in ("seed", "search.epochs") for row in settings.rows)
    assert evidence.version_table(outcomes).rows == [["0123456789abcdef", "a", "torch 2.13.0", len(outcomes)]]


def test_planted_columns_are_compared_with_the_kept_ones(tmp_path: Path) -> None:
    outcomes = grid(lost, ("ham", "random", "uniform"))
    for entry in outcomes:
        entry["settings"]["data"] = {"synthetic": {"planted_ranks": [6, 3, 1, 0]}}
        kept = {"ham": [5, 3, 2, 0], "random": [0, 2, 3, 4 + entry["seed"]], "uniform": [2, 2, 2, 2]}
        entry["kept_columns"] = {f"field_{n}": count for n, count in enumerate(kept[entry["arm"]])}
    table = planted_table(read_results(write_study(tmp_path, outcomes)).outcomes)
    seeds = sorted({entry["seed"] for entry in outcomes})
    ham, random, uniform = (cells(table, arm, "14") for arm in ("ham", "random", "uniform"))
    assert (ham["noise_columns"], ham["fields_lost"], ham["spearman_median"]) == (0, 0, 1.0)
    assert ham["runs"] == len(seeds)
    assert random["noise_columns"] == 4 + sum(seeds) / len(seeds)
    assert (random["fields_lost"], random["spearman_lowest"]) == (1, -1.0)
    assert (uniform["noise_columns"], uniform["spearman_median"]) == (2, None)


def test_there_is_no_planted_truth_in_prepared_data(tmp_path: Path) -> None:
    outcomes = grid(lost, ("ham",))
    for entry in outcomes:
        entry["settings"]["data"] = {"path": "data/ml", "synthetic": {"planted_ranks": [6, 3, 1, 0]}}
    assert planted_table(read_results(write_study(tmp_path, outcomes)).outcomes).rows == []


def test_unequal_limits_of_training_are_named(tmp_path: Path) -> None:
    outcomes = grid(lost, ("ham", "sam", "sseds", "uniform"))
    for entry in outcomes:
        if entry["arm"] == "sam":
            entry["settings"]["retrain"] = {"max_epochs": 15, "column_dropout_epochs": 10}
        if entry["arm"] in ("sseds", "uniform"):
            entry["epochs"] = {"pretrain": 5, "search": 0, "retrain": 9}
        if entry["arm"] == "sseds":
            entry["settings"]["retrain"]["max_epochs"] = 30
    found = Comparison(read_results(write_study(tmp_path, outcomes)))
    assert evidence.unequal_limits(found, ("ml", "dcnv2")) == [
        "sam may train for 35 epochs, ham for 30",
        "uniform may train for 20 epochs, ham for 30",
    ]
