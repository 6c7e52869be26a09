"""A model whose axes do not describe it is refused when a run starts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ham_dist.errors import SlicingError
from ham_dist.models.dcnv2 import DCNV2
from ham_dist.models.interaction import Axis
from ham_dist.models.registry import INTERACTIONS
from ham_dist.run import run_stages
from ham_dist.training.axes import check_axes
from tests.support.model_settings import model_settings
from tests.support.small_run import tiny_run


@pytest.mark.parametrize("name", ["fm", "deepfm", "autoint", "dcnv2"])
@pytest.mark.parametrize("first_order", ["linear", "table"])
def test_the_axes_of_every_model_describe_it(name: str, first_order: str) -> None:
    own = model_settings(name, lift_dim=4, first_order=first_order)
    drawn = torch.get_rng_state()
    check_axes(own, {"a": 3, "b": 1, "c": 4})
    assert torch.equal(torch.get_rng_state(), drawn)


class _Unnamed(DCNV2):
    """Its axes leave out a dimension."""

    def axes(self) -> dict[str, dict[int, Axis]]:
        return {name: axes for name, axes in super().axes().items() if name != "deep.0.weight"}


class _Turned(DCNV2):
    """Its axes name the fields in another order than the columns have."""

    def axes(self) -> dict[str, dict[int, Axis]]:
        return {
            name: {dimension: replace(axis, fields=axis.fields[::-1]) for dimension, axis in axes.items()}
            for name, axes in super().axes().items()
        }


class _Forgetful(DCNV2):
    """It does not apply the mask."""

    def forward(self, columns: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(columns)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (_Unnamed, "cannot be sliced by its axes"),
        (_Turned, "logits of _Turned under a random mask differ"),
        (_Forgetful, "logits of _Forgetful under a random mask differ"),
    ],
)
def test_axes_that_do_not_describe_the_model_are_refused_when_a_run_starts(
    tmp_path: Path, kind: type[DCNV2], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INTERACTIONS, "dcnv2", kind)
    with pytest.raises(SlicingError, match=f'model.name = "dcnv2".*{wanted}'):
        run_stages(tiny_run(), tmp_path / "run", resume=False)
    assert not (tmp_path / "run" / "checkpoints").exists()
