"""The studies follow the rules of docs/protocol.md."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ham_dist.methods.registry import METHODS
from ham_dist.study.grid import Branch, Study, open_study

FOLDER = Path(__file__).parents[2] / "launch" / "studies"
TUNING_SEED = 10
EPOCHS = 30
"""Limit of epochs of weight steps after pretraining: search and retraining together."""
COMPARED = (
    "paper-fig3",
    "paper-fig4",
    "paper-table2",
    "paper-base-dim",
    "methods",
    "frontier",
    "ablation",
    "frappe",
)
LOGS = ("criteo", "avazu")


def opened(name: str) -> Study:
    return open_study(FOLDER / f"{name}.toml")


def branches(study: Study) -> Iterator[Branch]:
    """All branches except the supernets as pretrained."""
    return (branch for group in study.groups for branch in group.branches if branch.target is not None)


def epochs(branch: Branch) -> int:
    """Largest number of epochs of weight steps after pretraining."""
    settings = branch.settings
    searched = settings.search.epochs if METHODS[settings.search.method.name].searches else 0
    return searched + settings.retrain.column_dropout_epochs + settings.retrain.max_epochs


@pytest.mark.parametrize("name", [*COMPARED, *LOGS])
def test_all_arms_of_a_table_have_equal_limits_and_equal_validation_data(name: str) -> None:
    study = opened(name)
    assert study.settings.test
    separate = [branch for branch in branches(study) if branch.settings.search.schedule == "separate"]
    assert {epochs(branch) for branch in separate} == {EPOCHS}
    for branch in branches(study):
        search, retrain = branch.settings.search, branch.settings.retrain
        assert search.validation == "halved"
        assert search.patience >= search.epochs, "a search never stops early"
        assert retrain.patience == 3
        assert str(branch.settings.data.path).endswith(f"-s{branch.settings.seed}")


def test_one_falling_search_has_at_most_1_3_times_the_steps_of_a_separate_one() -> None:
    falling = [b for b in branches(opened("frontier")) if b.settings.search.schedule == "falling"]
    assert {(b.arm, b.settings.search.epochs) for b in falling} == {("falling", 10), ("falling-13", 13)}
    assert {b.settings.retrain.max_epochs for b in falling} == {20}


@pytest.mark.parametrize("name", COMPARED)
def test_reported_seeds_are_those_of_the_protocol_and_not_of_tuning(name: str) -> None:
    seeds = {group.seed for group in opened(name).groups}
    assert seeds in ({*range(5)}, {*range(10)})
    assert TUNING_SEED not in seeds


def test_tuning_has_at_most_eight_trials_of_a_method_and_never_reads_test() -> None:
    study = opened("tune")
    assert not study.settings.test
    assert {group.seed for group in study.groups} == {TUNING_SEED}
    trials = Counter(branch.arm.partition(",")[0] for branch in branches(study))
    assert max(trials.values()) <= 8
    assert {branch.settings.model.name for branch in branches(study)} == {"dcnv2"}


def test_every_method_is_compared_tuned_and_run_on_the_samples() -> None:
    built_in = {name for name, method in METHODS.items() if method.__module__.startswith("ham_dist.")}
    for names in (COMPARED, ("samples",)):
        found = {branch.settings.search.method.name for name in names for branch in branches(opened(name))}
        assert found == built_in
