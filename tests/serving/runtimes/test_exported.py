"""The program that is compiled gives the probabilities of the model, at any number of records and values."""

from pathlib import Path

import pytest
import torch

from ham_dist.export.bundle import open_bundle
from ham_dist.serving.runtimes.compiling import exported
from ham_dist.serving.runtimes.plain_inputs import plain_model
from ham_dist.serving.runtimes.runtime import tensors_of
from tests.support.live_models import export, live_model


@pytest.mark.parametrize(
    ("name", "first_order", "several"),
    [
        ("fm", "linear", {"genres"}),
        ("fm", "table", set()),
        ("autoint", "linear", {"user", "genres"}),
        ("dcnv2", "linear", {"user", "genres", "age"}),
    ],
)
def test_the_program_takes_any_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, first_order: str, several: set[str]
) -> None:
    monkeypatch.setattr("tests.support.live_models.MULTI_VALUED", several)
    export(live_model(name, first_order), tmp_path / "bundle", precision="int8")
    model = plain_model(open_bundle(tmp_path / "bundle"))
    assert {field.name for field in model.order.several} == several
    # Compiled code has no guards. torch.export's exclude one record, as embedding_bag compares sizes with 1.
    program = exported(model).module(check_guards=False)
    for rows, seed in [*((1, seed) for seed in range(4)), (2, 0), (17, 0)]:
        inputs = tensors_of(model.order.random_batch(rows, seed))
        with torch.no_grad():
            torch.testing.assert_close(program(*inputs), model(*inputs), rtol=0, atol=1e-6)
