"""Reading results.jsonl and tests.jsonl, whole, partial and damaged."""

import json
from pathlib import Path

import pytest

from ham_dist.errors import ReportError
from ham_dist.study.folder import GRID
from ham_dist.study.outcomes import Outcome, read_results
from ham_dist.study.results import RESULTS, TESTS
from tests.support.study_results import outcome, write_study


def test_tests_are_joined_by_key(tmp_path: Path) -> None:
    folder = write_study(tmp_path, [outcome("ham", 0, auc=0.81), outcome("sam", 0, auc=0.79)])
    found = read_results(folder)
    assert (found.study, found.measure) == ("paper-fig3", "test")
    assert {entry.arm: entry.auc("test") for entry in found.outcomes} == {"ham": 0.81, "sam": 0.79}
    assert {entry.arm: entry.auc("validation") for entry in found.outcomes} == {
        "ham": pytest.approx(0.82),
        "sam": pytest.approx(0.80),
    }
    assert found.notes == []


def test_without_tests_the_measure_is_validation(tmp_path: Path) -> None:
    found = read_results(write_study(tmp_path, [outcome("ham", 0)], tested=False))
    assert found.measure == "validation"
    assert any("No claim rests on them" in note for note in found.notes)


def test_a_branch_that_is_not_tested_has_no_value_and_is_counted(tmp_path: Path) -> None:
    folder = write_study(tmp_path, [outcome("ham", 0), outcome("ham", 1)])
    first, _ = (folder / TESTS).read_text().splitlines(keepends=True)
    (folder / TESTS).write_text(first)
    found = read_results(folder)
    assert [entry.auc(found.measure) for entry in found.outcomes] == [0.8, None]
    assert not found.outcomes[1].failed("test")
    assert found.notes == ["1 finished branches are not tested: `ham-dist study test` tests them."]


def test_failures_and_values_that_are_not_finite(tmp_path: Path) -> None:
    bad = outcome("ham", 1, validation_auc=None)
    folder = write_study(
        tmp_path,
        [
            outcome("ham", 0, auc=None, error="DivergedError: the loss is not finite"),
            bad,
            outcome("ham", 2, auc=None, validation_auc=0.8),
            outcome("ham", 3),
        ],
    )
    found = read_results(folder)
    assert [entry.failed("test") for entry in found.outcomes] == [True, True, True, False]
    assert [entry.auc("test") for entry in found.outcomes[::2]] == [None, None]
    assert found.outcomes[1].auc("validation") is None


def test_an_incomplete_last_line_is_left_out(tmp_path: Path) -> None:
    folder = write_study(tmp_path, [outcome("ham", 0)])
    with (folder / RESULTS).open("a") as file:
        file.write('{"key": "x", "ar')
    assert len(read_results(folder).outcomes) == 1


def test_branches_of_the_grid_that_are_not_finished_are_counted(tmp_path: Path) -> None:
    folder = write_study(tmp_path, [outcome("ham", 0)])
    keys = {"ml-dcnv2-ham-14-0": "ham", "a": "sam", "b": "ham", "c": "sam"}
    branches = [{"key": key, "arm": arm, "folder": f"groups/{key}"} for key, arm in keys.items()]
    (folder / GRID).write_text(json.dumps({"study": "x", "test": True, "branches": branches}))
    found = read_results(folder)
    assert found.folders["a"] == folder / "groups" / "a"
    assert len(found.notes) == 1
    assert found.notes[0].startswith("3 of 4 branches are not finished: sam 2, ham 1. ")
    (folder / GRID).write_text("{}")
    with pytest.raises(ReportError, match=r"grid\.json: cannot be read"):
        read_results(folder)


def test_two_results_for_one_cell_are_an_error(tmp_path: Path) -> None:
    folder = write_study(tmp_path, [outcome("ham", 0), outcome("ham", 0, key="other")])
    with pytest.raises(ReportError, match=r"ml-dcnv2-ham-14-0 and other are both arm 'ham' of dcnv2"):
        read_results(folder)


def test_other_data_and_commits_are_noted(tmp_path: Path) -> None:
    other = outcome("sam", 0, commit="fedcba9876543210")
    other["data"] = {"name": "ml", "digest": "another", "seed": 0}
    found = read_results(write_study(tmp_path, [outcome("ham", 0), other]))
    assert found.notes == [
        "ml, seed 0: the arms had 2 different preparations of the data, so they cannot be compared.",
        "The branches ran on 2 commits: 0123456789, fedcba9876.",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]\n", r"results\.jsonl:1: is damaged"),
        (json.dumps({"key": "x", "arm": 3}) + "\n", r"the line with key x is damaged: \w+"),
        ("", r"no branch has finished yet"),
    ],
)
def test_damaged_results(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / RESULTS).write_text(content)
    with pytest.raises(ReportError, match=message):
        read_results(tmp_path)


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"has no results\.jsonl"):
        read_results(tmp_path)


def test_sizes() -> None:
    labels = {
        str(target): Outcome.model_validate({**outcome("ham", 0), "target": target}).size
        for target in ({"columns": 1_400}, {"bytes": 56_000}, "all", None)
    }
    assert [size.label for size in labels.values()] == ["1,400", "56 kB", "all", "all, pretrained"]
    assert [size.is_budget for size in labels.values()] == [True, True, False, False]


def test_the_smallest_form_counts() -> None:
    counted = [
        Outcome.model_validate({**outcome("pep", 0), "stored_bytes": stored}).counted_bytes
        for stored in (None, 7, {"bitmap": 9, "csr": 5})
    ]
    assert counted == [56_000, 7, 5]
