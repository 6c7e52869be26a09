"""Ladders of targets, and the epochs of a falling search."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ham_dist.config.load import load_run
from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.config.targets import epochs_of_falling_search, resolved
from ham_dist.errors import TargetError

ROWS = {"user": 100, "gender": 4, "movie": 50}  # 16 + 4 + 16 columns


def settings(**search: Any) -> RunSettings:
    return RunSettings.model_validate({"search": search})


def columns(run: RunSettings) -> list[int | None]:
    return [target.columns for target in resolved(run, ROWS).search.targets]


def test_auto_is_a_ladder_of_five_from_a_half_to_a_sixteenth() -> None:
    run = load_run(None, ["search.targets=auto"])
    assert run.search.targets == (Target(ladder=5),)
    assert columns(run) == [18, 11, 6, 4, 2]


def test_steps_of_a_small_supernet_that_round_to_one_size_are_one_target() -> None:
    run = settings(targets=[{"ladder": 20}])
    found = [count or 0 for count in columns(run)]
    assert found == sorted(set(found), reverse=True)
    assert found[0] == 18
    assert found[-1] == 2


def test_explicit_targets_stay_as_they_are() -> None:
    run = settings(targets=[{"columns": 4}, {"columns": 12}])
    assert resolved(run, ROWS) is run


def test_a_falling_search_goes_from_the_largest_to_the_smallest() -> None:
    run = settings(targets=[{"columns": 4}, {"columns": 12}, {"columns": 4}], schedule="falling")
    assert columns(run) == [12, 4]
    with pytest.raises(TargetError, match="no common order"):
        resolved(settings(targets=[{"columns": 4}, {"bytes": 100}], schedule="falling"), ROWS)


@pytest.mark.parametrize("target", [{}, {"columns": 3, "ladder": 2}, {"ladder": 1}])
def test_a_target_is_one_of_three_kinds(target: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"either|greater than or equal to 2"):
        settings(targets=[target])


@given(epochs=st.integers(1, 40), targets=st.integers(1, 20))
def test_epochs_are_divided_evenly(epochs: int, targets: int) -> None:
    shares = epochs_of_falling_search(epochs, targets)
    assert len(shares) == targets
    assert min(shares) >= 1
    assert max(shares) - min(shares) <= 1
    assert sum(shares) == max(epochs, targets)


def test_bytes_of_several_precisions_have_no_common_order() -> None:
    targets = [{"bytes": 700, "precision": "int8"}, {"bytes": 900}]
    with pytest.raises(TargetError, match="Give the same precision for all targets"):
        resolved(settings(schedule="falling", targets=targets), ROWS)
    assert len(resolved(settings(targets=targets), ROWS).search.targets) == 2
