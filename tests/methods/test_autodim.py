"""AutoDim against its formulas, and its choices under a budget."""

from typing import Any

import pytest
import torch

from ham_dist.config.target import Target
from ham_dist.errors import ConfigError, TargetError
from ham_dist.methods.autodim import AutoDim, AutoDimSettings
from ham_dist.methods.registry import METHODS
from tests.support.search_space import LAYOUT, method, space, with_gradient

SIZES = torch.tensor([[1, 3], [1, 1], [1, 3]])


def autodim(columns: int, **settings: Any) -> AutoDim:
    chosen = method("autodim", Target(columns=columns), **settings)
    assert isinstance(chosen, AutoDim)
    return chosen


def test_the_mask_is_one_mixture_per_field() -> None:
    mask = autodim(7).mask()
    for part in (mask[0:4], mask[4:6], mask[6:10]):
        assert torch.equal(part[1:], part[1].expand(len(part) - 1)), "one number for all columns of a band"
        assert float(part[0] + part[1]) == pytest.approx(1.0, abs=1e-6)


def test_noise_depends_on_seed_and_step_alone() -> None:
    first, second = autodim(7), autodim(7)
    assert torch.equal(first.mask(), second.mask())
    first.step(with_gradient(torch.zeros_like))
    assert not torch.equal(first.mask(), second.mask())
    second.tensors()["steps"].fill_(1)
    assert torch.equal(first.mask(), second.mask()), "a resumed search draws the same numbers"


def test_a_step_follows_the_chain_rule() -> None:
    chosen = autodim(7, alpha_learning_rate=0.5)
    chosen.logits.copy_(torch.tensor([[0.3, -0.2], [0.0, 1.0], [-1.0, 0.5]]))
    before, gradient = chosen.logits.clone(), torch.arange(10.0)
    weights = chosen.mask()[[0, 1, 4, 5, 6, 7]].view(3, 2)
    # dL/dw of a band is the sum over its columns. d softmax(z / t) / dz = (diag(w) - w w') / t, and
    # z = log softmax(logits) + noise differs from the logits by a number per field, which w does not see.
    of_band = torch.tensor([[0.0, 1 + 2 + 3], [4.0, 5.0], [6.0, 7 + 8 + 9]])
    expected = weights * (of_band - (weights * of_band).sum(dim=1, keepdim=True)) / chosen.temperature
    chosen.step(with_gradient(lambda mask: gradient))
    torch.testing.assert_close(before - chosen.logits, 0.5 * expected, rtol=1e-5, atol=1e-6)


def test_the_temperature_falls_to_its_lowest() -> None:
    chosen = autodim(7, temperature_decay=0.3)
    assert chosen.temperature == 1.0
    chosen.steps.fill_(2)
    assert chosen.temperature == pytest.approx(0.4)
    chosen.steps.fill_(50)
    assert chosen.temperature == 0.01


@pytest.mark.parametrize(
    ("columns", "kept"), [(3, [1, 1, 1]), (5, [1, 1, 3]), (6, [1, 1, 3]), (7, [3, 1, 3]), (8, [3, 1, 3])]
)
def test_the_budget_takes_the_most_probable_candidates_that_use_it(columns: int, kept: list[int]) -> None:
    chosen = autodim(columns)
    chosen.logits.copy_(torch.tensor([[0.0, 1.0], [0.5, 0.0], [0.0, 2.0]]))
    counts = [len(part) for part in LAYOUT.split(chosen.choice()).values()]
    assert counts == kept
    assert chosen.space.budget.used(chosen.choice()) <= columns


def test_the_whole_budget_is_used_although_smaller_candidates_are_more_probable() -> None:
    chosen = autodim(5)
    chosen.logits.copy_(torch.tensor([[9.0, 0.0], [0.0, 0.0], [8.0, 0.0]]))
    assert [len(part) for part in LAYOUT.split(chosen.choice()).values()] == [1, 1, 3]


def test_the_discrete_choice_ignores_the_target() -> None:
    chosen = autodim(3, choice="discrete")
    chosen.logits.copy_(torch.tensor([[0.0, 1.0], [0.5, 0.0], [0.0, 2.0]]))
    assert [part.tolist() for part in LAYOUT.split(chosen.choice()).values()] == [[1, 2, 3], [0], [1, 2, 3]]
    assert chosen.used() == 7


def test_what_it_cannot_search() -> None:
    with pytest.raises(ConfigError, match=r"no candidate dims.*\n.*model.candidates"):
        AutoDim(space(Target(columns=3)), AutoDimSettings())
    with pytest.raises(TargetError, match="columns = 2: below the 3"):
        autodim(2)
    with pytest.raises(ConfigError, match=r"ham.*one by one.*\n.*autodim"):
        METHODS["ham"](space(Target(columns=3), bands=True), METHODS["ham"].Settings.model_validate({}))


def nested(columns: int, **settings: Any) -> AutoDim:
    kind = METHODS["autodim"]
    chosen = kind(
        space(Target(columns=columns)), kind.Settings.model_validate({"prefixes": [1, 2, 3], **settings})
    )
    assert isinstance(chosen, AutoDim)
    return chosen


def test_a_column_has_the_weights_of_all_prefixes_with_it() -> None:
    chosen = nested(7)
    chosen.logits.copy_(torch.tensor([[0.3, -0.2, 0.1], [0.0, 1.0, 9.0], [-1.0, 0.5, 0.2]]))
    mask = chosen.mask()
    for part in (mask[0:4], mask[4:6], mask[6:10]):
        assert float(part[0]) == pytest.approx(1.0, abs=1e-6), "every candidate has the first column"
        assert (part[1:] < part[:-1]).all()
    assert mask[3] == mask[9] == 0.0, "no candidate has the fourth column"
    reached = float(mask[5])
    chosen.logits[1, 2] = 0.0
    assert float(chosen.mask()[5]) == reached, "gender has two columns, and no third candidate"


def test_a_step_on_nested_candidates_follows_the_chain_rule() -> None:
    chosen = nested(7, alpha_learning_rate=0.5)
    chosen.logits.copy_(torch.tensor([[0.3, -0.2, 0.1], [0.0, 1.0, 0.0], [-1.0, 0.5, 0.2]]))
    before, mask = chosen.logits.clone(), chosen.mask()
    ends = [mask[0:3], mask[4:6], mask[6:9]]
    chosen.step(with_gradient(lambda mask: torch.arange(10.0)))
    for field, (part, gradient) in enumerate(zip(ends, ([0.0, 1, 3], [4.0, 9], [6.0, 13, 21]), strict=True)):
        weights = part - torch.cat([part[1:], torch.zeros(1)])  # a prefix ends where the mask falls
        of_prefix = torch.tensor(gradient)  # dL/dw is the sum over the prefix's columns
        expected = weights * (of_prefix - (weights * of_prefix).sum()) / 1.0
        moved = (before - chosen.logits)[field, : len(part)]
        torch.testing.assert_close(moved, 0.5 * expected, rtol=1e-4, atol=1e-6)
    assert chosen.logits[1, 2] == 0.0


def test_nested_candidates_meet_a_budget_exactly_where_they_can() -> None:
    chosen = nested(6)
    chosen.logits.copy_(torch.tensor([[0.0, 0.0, 5.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]]))
    kept = LAYOUT.split(chosen.choice())
    counts = {table: len(columns) for table, columns in kept.items()}
    assert sum(counts.values()) == 6
    assert all(list(columns) == list(range(len(columns))) for columns in kept.values()), "prefixes"


def test_prefixes_and_candidates_with_tables_exclude_each_other() -> None:
    kind = METHODS["autodim"]
    with pytest.raises(ConfigError, match=r"prefixes = \[2, 4\]: the model has candidates with a table each"):
        kind(space(Target(columns=7), bands=True), kind.Settings.model_validate({"prefixes": [2, 4]}))
    with pytest.raises(ValueError, match="ascending"):
        kind.Settings.model_validate({"prefixes": [4, 2]})
