"""Candidate dims of every field: formula, slicing to one candidate, and a whole search on data."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from ham_dist.errors import TargetError
from ham_dist.models.interaction import Interaction
from ham_dist.models.registry import INTERACTIONS, build_interaction
from ham_dist.training.axes import check_axes
from tests.support.model_settings import model_settings
from tests.support.small_run import tiny_run
from tests.support.whole_runs import do_run, result

SUM = 7  # of the candidates 1, 2 and 4


def supernet(name: str) -> Interaction:
    torch.manual_seed(0)
    settings = model_settings(name, lift_dim=6, mlp=(8, 4), candidates=(1, 2, 4))
    return build_interaction(settings, {"a": SUM, "b": SUM}).double()


@pytest.mark.parametrize("name", INTERACTIONS)
def test_axes_slice_to_one_candidate_of_each_field(name: str) -> None:
    settings = model_settings(name, lift_dim=6, mlp=(8, 4), candidates=(1, 2, 4))
    check_axes(settings, {"a": SUM, "b": SUM, "c": SUM})


def test_a_field_is_the_weighted_sum_of_its_normalized_candidates() -> None:
    model = supernet("fm").train()
    columns = torch.randn(16, 2 * SUM, dtype=torch.float64)
    weights = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.0, 0.4]], dtype=torch.float64)
    mask = torch.cat([of_field.repeat_interleave(torch.tensor([1, 2, 4])) for of_field in weights])
    lifted = torch.zeros(16, 2, 4, dtype=torch.float64)
    state = model.state_dict()
    for field in range(2):
        for number, (start, size) in enumerate(((0, 1), (1, 2), (3, 4))):
            part = columns[:, field * SUM + start : field * SUM + start + size]
            product = part @ state[f"maps.{size}"][field]
            lifted[:, field] += weights[field, number] * functional.batch_norm(
                product, None, None, training=True
            )
    expected = model.inner(lifted.flatten(1))  # type: ignore[operator]
    torch.testing.assert_close(model(columns, mask), expected)


def test_open_candidates_share_the_weight_equally() -> None:
    model = supernet("dcnv2").eval()
    columns = torch.randn(5, 2 * SUM, dtype=torch.float64)
    thirds = torch.full((2 * SUM,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(model(columns), model(columns, thirds))
    torch.testing.assert_close(model(columns), model(columns, torch.ones_like(thirds)))


def test_a_dim_that_is_no_candidate() -> None:
    with pytest.raises(TargetError, match=r"has 3 columns, expected one of 1, 2, 4"):
        build_interaction(model_settings("fm", candidates=(1, 2, 4)), {"a": 3})


def test_a_search_among_candidates_runs_to_a_bundle(tmp_path: Path) -> None:
    settings = tiny_run(
        model={"name": "dcnv2", "candidates": [1, 2, 4]},
        search={"method": {"name": "autodim", "alpha_learning_rate": 10.0}, "targets": [{"columns": 12}]},
    )
    do_run(settings, tmp_path / "run")
    found = result(tmp_path / "run")
    kept = found["kept_columns"]
    assert set(kept.values()) <= {1, 2, 4}
    assert sum(kept.values()) <= 12
    assert (tmp_path / "run" / "bundle").is_dir()
