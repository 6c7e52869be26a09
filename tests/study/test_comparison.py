"""Cells, primary endpoints and comparisons at equal bytes, against numbers computed by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from ham_dist.errors import ReportError
from ham_dist.study.comparison import Comparison, Endpoint, auc_at
from ham_dist.study.outcomes import read_results
from tests.support.study_results import grid, outcome, write_study

PLACE = ("ml", "dcnv2")
SEEDS = 4
NOISE = ((0.0, 0.004, -0.002, 0.001), (0.003, -0.001, 0.002, -0.004))
"""By arm and seed."""


def auc(arm: str, size: int, seed: int) -> float:
    lead = {"ham": 0.01, "sam": 0.0, "sseds": 0.012}[arm]
    return 0.88 + lead + size / 10_000 + NOISE[arm == "ham"][seed] * (2 if size == 28 else 1)


def comparison(folder: Path, outcomes: list[dict[str, Any]], reference: str | None = None) -> Comparison:
    return Comparison(read_results(write_study(folder, outcomes)), reference)


def endpoints(found: Comparison) -> dict[str, Endpoint]:
    return {entry.arm: entry for entry in found.endpoints(PLACE)}


def test_the_endpoint_is_the_mean_over_sizes_per_seed(tmp_path: Path) -> None:
    arms = ("sam", "ham", "sseds")
    found = endpoints(comparison(tmp_path, grid(auc, arms)))
    means = {arm: [(auc(arm, 14, seed) + auc(arm, 28, seed)) / 2 for seed in range(SEEDS)] for arm in arms}
    tests = {arm: stats.ttest_rel(means[arm], means["ham"]) for arm in ("sam", "sseds")}
    for arm, test in tests.items():
        entry = found[arm].difference
        assert entry is not None
        assert entry.p == pytest.approx(test.pvalue)
        interval = test.confidence_interval(0.95)
        assert (entry.low, entry.high) == pytest.approx((interval.low, interval.high))
        assert found[arm].mean is not None
    # Holm over two rivals: the smaller p counts twice, the larger once.
    small, large = sorted(tests, key=lambda arm: tests[arm].pvalue)
    assert found[small].p_holm == pytest.approx(min(1, 2 * tests[small].pvalue))
    assert found[large].p_holm == pytest.approx(max(2 * tests[small].pvalue, tests[large].pvalue))
    assert found["ham"].difference is None
    assert found["ham"].p_holm is None
    assert list(found) == ["ham", "sam", "sseds"]


def test_a_seed_without_all_sizes_is_left_out_of_that_pair_alone(tmp_path: Path) -> None:
    outcomes = grid(auc, ("ham", "sam", "sseds"))
    lost = next(o for o in outcomes if (o["arm"], o["columns"], o["seed"]) == ("sam", 28, 2))
    lost.update(error="DivergedError", validation_auc=None)
    found = comparison(tmp_path, outcomes)
    sam, sseds = endpoints(found)["sam"].difference, endpoints(found)["sseds"].difference
    assert sam is not None
    assert sseds is not None
    assert (sam.n, sseds.n) == (3, 4)
    cells = {(cell.arm, cell.size.count): cell for cell in found.cells(PLACE)}
    assert (cells["sam", 28].failures, cells["sam", 14].failures) == (1, 0)
    difference = cells["sam", 14].difference
    assert difference is not None
    assert difference.n == 4, "the size that did not fail still has all its pairs"


def test_cells_are_compared_at_their_size(tmp_path: Path) -> None:
    found = comparison(tmp_path, grid(auc))
    (cell,) = [cell for cell in found.cells(PLACE) if (cell.arm, cell.size.count) == ("sam", 28)]
    differences = [auc("sam", 28, seed) - auc("ham", 28, seed) for seed in range(SEEDS)]
    assert cell.difference is not None
    assert cell.difference.mean == pytest.approx(sum(differences) / SEEDS)
    assert cell.difference.losses == sum(difference < 0 for difference in differences)


def test_a_rival_without_a_size_has_no_test_but_counts_for_holm(tmp_path: Path) -> None:
    outcomes = grid(auc, ("ham", "sam")) + grid(auc, ("sseds",), sizes=(14,))
    found = endpoints(comparison(tmp_path, outcomes))
    lacking = found["sseds"].difference
    assert lacking is not None
    assert lacking.no_test == "no result at size 28"
    sam = found["sam"].difference
    assert sam is not None
    assert sam.p is not None
    assert found["sam"].p_holm == pytest.approx(min(1, 2 * sam.p))


def test_one_seed_is_no_test(tmp_path: Path) -> None:
    difference = endpoints(comparison(tmp_path, grid(auc, seeds=(0,))))["sam"].difference
    assert difference is not None
    assert (difference.n, difference.p, difference.no_test) == (1, None, "one pair")


def test_models_and_data_are_kept_apart(tmp_path: Path) -> None:
    outcomes = [
        *grid(auc),
        *grid(lambda arm, size, seed: 0.5, ("ham", "random"), model="fm"),
        *grid(lambda arm, size, seed: 0.6, ("ham",), data="frappe"),
    ]
    found = comparison(tmp_path, outcomes)
    assert found.results.places == [PLACE, ("ml", "fm"), ("frappe", "dcnv2")]
    assert found.rivals(PLACE) == ["sam"]
    assert found.rivals(("ml", "fm")) == ["random"]
    assert found.rivals(("frappe", "dcnv2")) == []
    difference = found.endpoints(("ml", "fm"))[1].difference
    assert difference is not None
    assert difference.no_test == "all 4 differences are equal"


def test_the_reference_can_be_chosen(tmp_path: Path) -> None:
    outcomes = grid(auc, ("sam", "sseds"))
    assert comparison(tmp_path, [dict(o) for o in outcomes]).reference == "sam"
    chosen = comparison(tmp_path, [dict(o) for o in outcomes], "sseds")
    assert endpoints(chosen)["sam"].difference is not None
    with pytest.raises(ReportError, match=r"--reference pep: no arm .* The study has: sam, sseds"):
        comparison(tmp_path, outcomes, "pep")


def test_auc_on_the_line_over_the_logarithm_of_bytes() -> None:
    line = {400: 0.90, 100: 0.80, 1_600: 0.95}
    assert auc_at(line, 200) == pytest.approx(0.85), "200 is halfway from 100 to 400 in logarithms"
    assert auc_at(line, 400) == 0.90
    assert auc_at(line, 800) == pytest.approx(0.925)
    assert auc_at(line, 99) is None, "below the first point there is none"
    assert auc_at(line, 10**9) == 0.95, "above the last point the line is not extended"


def test_arms_without_a_budget_are_compared_at_equal_bytes(tmp_path: Path) -> None:
    """PEP stores 2^(1/2) x the bytes of HAM at 14 columns: a half of the way to twice the bytes, at 28."""
    half = round(4_000 * 14 * math.sqrt(2))
    stored = {14: {"bitmap": half, "csr": 2 * half}, 28: 4_000 * 28}
    outcomes = grid(auc)
    outcomes += [
        outcome("pep", seed, size, auc=0.9 + seed / 1_000, stored_bytes=stored[size], columns_kept=91)
        for size in (14, 28)
        for seed in range(SEEDS)
    ]
    found = comparison(tmp_path, outcomes)
    assert found.without_column_budget(PLACE, "pep")
    assert not found.without_column_budget(PLACE, "sam")
    entry = endpoints(found)["pep"]
    assert entry.equal_bytes
    assert entry.difference is not None
    expected = [
        0.9 + seed / 1_000
        - ((auc("ham", 14, seed) + auc("ham", 28, seed)) / 2 + auc("ham", 28, seed)) / 2
        for seed in range(SEEDS)
    ]  # fmt: skip
    assert entry.difference.mean == pytest.approx(sum(expected) / SEEDS, abs=1e-7)
    assert entry.difference.n == SEEDS


def test_fewer_bytes_than_the_reference_are_no_pair(tmp_path: Path) -> None:
    below = [outcome("pep", seed, 14, auc=0.9, stored_bytes=100) for seed in range(SEEDS)]
    found = comparison(tmp_path, grid(auc) + below)
    difference = endpoints(found)["pep"].difference
    assert difference is not None
    assert (difference.n, difference.no_test) == (
        0,
        "no seed in which ham has as few bytes, or not all sizes",
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [({"target": {"bytes": 90_000}}, True), ({"columns": 40}, True), ({"target": {"columns": 28}}, False)],
)
def test_which_arms_have_no_budget_of_columns(tmp_path: Path, values: dict[str, Any], expected: bool) -> None:
    other = {**outcome("other", 0, 28), **values}
    assert comparison(tmp_path, [*grid(auc), other]).without_column_budget(PLACE, "other") is expected


def test_a_study_in_bytes_is_compared_size_by_size(tmp_path: Path) -> None:
    outcomes = [{**entry, "target": {"bytes": 4_000 * entry["columns"]}} for entry in grid(auc)]
    found = comparison(tmp_path, outcomes)
    assert not found.without_column_budget(PLACE, "sam")
    assert [size.label for size in found.sizes(PLACE)] == ["56 kB", "112 kB"]


def test_all_columns_are_no_rival(tmp_path: Path) -> None:
    whole = [outcome("supernet", seed, None, auc=0.89) for seed in range(SEEDS)]
    further = [
        {**outcome("ham", seed, None, auc=0.9), "target": "all", "key": f"all-{seed}"} for seed in range(2)
    ]
    other = [outcome("supernet+sseds", 0, None, group="another")]
    found = comparison(tmp_path, grid(auc) + whole + further + other)
    assert found.rivals(PLACE) == ["sam"]
    over = {(cell.arm, cell.size.count, other): test for cell, other, test in found.over_supernet(PLACE)}
    assert len(over) == 4 * 2
    test = over["ham", 14, "supernet"]
    assert test.mean == pytest.approx(sum(auc("ham", 14, seed) for seed in range(SEEDS)) / SEEDS - 0.89)
    assert over["ham", 14, "ham, all columns"].n == 2


def test_missing_seeds_are_named(tmp_path: Path) -> None:
    outcomes = [o for o in grid(auc) if (o["arm"], o["columns"], o["seed"]) != ("sam", 28, 3)]
    assert comparison(tmp_path, outcomes).missing(PLACE) == ["sam, size 28: no result for seed 3"]


def test_a_study_without_targets_has_no_endpoint(tmp_path: Path) -> None:
    whole = [outcome("supernet", seed, None) for seed in range(2)]
    found = comparison(tmp_path, whole)
    assert (found.reference, found.endpoints(PLACE), found.rivals(PLACE)) == ("", [], [])
