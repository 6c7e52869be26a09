"""Every method: equal on any number of ranks, exact after a resume, the same in library and trainer."""

import pytest
import torch

from ham_dist.methods.registry import METHODS
from tests.support.method_steps import (
    KEPT,
    Searched,
    Sliced,
    by_library_and_trainer,
    resumed,
    searched,
    sliced,
)
from tests.support.ranks import run_on_ranks

NAMES = list(METHODS)
BY_COLUMN = [name for name in NAMES if METHODS[name].has_budget and not METHODS[name].chooses_bands]
"""All but those that need a model with candidate dims, or change the tables in the forward pass."""


@pytest.fixture(scope="module")
def unbroken() -> dict[str, Searched]:
    return run_on_ranks(1, searched, NAMES)[0]


def assert_equal(found: Searched, expected: Searched) -> None:
    """To the last bit."""
    assert found.columns == expected.columns
    for ours, theirs in ((found.numbers, expected.numbers), (found.tables, expected.tables)):
        assert ours.keys() == theirs.keys()
        for name, values in ours.items():
            assert torch.equal(values, theirs[name]), name


@pytest.fixture(scope="module", params=[2, 3])
def on_ranks(request: pytest.FixtureRequest) -> list[dict[str, Searched]]:
    return run_on_ranks(request.param, searched, NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_several_ranks_search_as_one_does(
    unbroken: dict[str, Searched], on_ranks: list[dict[str, Searched]], name: str
) -> None:
    if name in BY_COLUMN:
        assert sum(map(len, unbroken[name].columns.values())) == KEPT
    for of_rank in on_ranks:
        assert_equal(of_rank[name], unbroken[name])


@pytest.fixture(scope="module")
def after_a_resume(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Searched]:
    return run_on_ranks(1, resumed, NAMES, tmp_path_factory.mktemp("resumed"))[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_search_ends_in_the_same_bits(
    unbroken: dict[str, Searched], after_a_resume: dict[str, Searched], name: str
) -> None:
    assert_equal(after_a_resume[name], unbroken[name])


@pytest.fixture(scope="module")
def both_ways() -> dict[str, tuple[Searched, Searched]]:
    return run_on_ranks(1, by_library_and_trainer, BY_COLUMN)[0]


@pytest.mark.parametrize("name", BY_COLUMN)
def test_library_and_trainer_agree(both_ways: dict[str, tuple[Searched, Searched]], name: str) -> None:
    library, trainer = both_ways[name]
    assert library.columns == trainer.columns
    for ours, theirs in ((library.numbers, trainer.numbers), (library.tables, trainer.tables)):
        assert ours.keys() == theirs.keys()
        for key, values in ours.items():
            # The trainer's gradients are sums of float64 that are rounded; the library's are not.
            torch.testing.assert_close(values, theirs[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.fixture(scope="module")
def after_slicing() -> dict[str, Sliced]:
    return run_on_ranks(1, sliced, NAMES)[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_sliced_model_computes_what_the_mask_did(after_slicing: dict[str, Sliced], name: str) -> None:
    found = after_slicing[name]
    torch.testing.assert_close(found.after, found.soft, rtol=0, atol=1e-6)  # float32 probabilities


@pytest.mark.parametrize("name", BY_COLUMN)
def test_other_columns_are_noticed(after_slicing: dict[str, Sliced], name: str) -> None:
    error = after_slicing[name].other_columns
    assert error is not None
    assert "the logits of the sliced model differ from those of the masked model" in error


@pytest.mark.parametrize("name", ["sam", "sam_gs", "irazor"])
def test_a_mask_that_is_not_folded_is_noticed(after_slicing: dict[str, Sliced], name: str) -> None:
    error = after_slicing[name].without_folding
    assert error is not None
    assert "with the mask folded into its tables differ from those of the softly masked model" in error
