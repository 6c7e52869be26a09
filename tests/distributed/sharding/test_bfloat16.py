"""Dense parts with products in bfloat16: a step is close to that in float32, and the rest stays float32."""

from typing import Any

import pytest
import torch
from torch import nn

from ham_dist.config.schema import RunSettings
from ham_dist.models.mlp import hidden_layers
from ham_dist.training.evaluation import predict
from ham_dist.training.loop import log_loss, mask_gradient, weight_step
from ham_dist.training.state import TrainingState, open_supernet
from tests.support.plain_model import FIELDS
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import MODELS, alpha_steps, local_batch, settings

BFLOAT16 = {"precision": {"dense": "bfloat16"}}


def gradients(state: TrainingState) -> torch.Tensor:
    """Returns the gradients of all dense weights, concatenated."""
    return torch.cat(
        [
            parameter.grad.flatten()
            for parameter in state.interaction.parameters()
            if parameter.grad is not None
        ]
    )


def near(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Returns the norm of the difference as a share of the norm."""
    return float((ours - theirs).norm() / theirs.norm())


def opened(run: RunSettings) -> TrainingState:
    """Returns a new supernet whose hidden units are all active.

    Rounding switches a unit that is near 0 on or off, and its whole part of a gradient with it: in this
    batch, 5 % of a gradient for one unit of one row.
    """
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    for child in state.interaction.modules():
        if isinstance(child, nn.BatchNorm1d):
            nn.init.constant_(child.bias, 4.0)
    return state


def one_of_each(cases: dict[str, RunSettings]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, run in cases.items():
        state = opened(run)
        batch = local_batch(0)
        scores = predict(state, [batch])[0]
        logits = state.logits(batch, trains=True)
        mask = (torch.arange(state.sharded.mask.layout.size) % 3 > 0).float()
        alpha = mask_gradient(state, local_batch(7), mask)
        state = opened(run)
        loss = weight_step(state, batch)
        statistics = [
            values
            for child in state.interaction.modules()
            if isinstance(child, nn.BatchNorm1d)
            for values in (child.running_mean, child.running_var)
        ]
        tables = {
            field: local.parameter.grad
            for field, local in state.sharded.local.items()
            if local.parameter is not None
        }
        types = {
            values.dtype
            for values in (
                logits,
                loss,
                log_loss(logits, batch),
                scores,
                alpha,
                *statistics,
                *tables.values(),
            )
            if values is not None
        }
        dense = {parameter.dtype for parameter in state.interaction.parameters()}
        found[name] = {
            "types": types | dense,
            "loss": loss,
            "gradients": gradients(state),
            "alpha": alpha,
            "scores": scores,
        }
        found[name] |= {"statistics": statistics, "tables": tables}
    return found


def test_a_step_is_near_the_same_in_float32() -> None:
    """bfloat16 has 8 bits: factors have errors of up to 1/256, and sums of many products less than 5/256.

    After three layers of attention the errors add up to more. Scores without a gradient have the same bits.
    """
    cases = {
        f"{name} {model}": settings(model, **sections)
        for model in MODELS
        for name, sections in (("low", BFLOAT16), ("full", {}))
    }
    for found in run_on_ranks(2, one_of_each, cases):
        for model in MODELS:
            low, full, share = (
                found[f"low {model}"],
                found[f"full {model}"],
                0.1 if model == "autoint" else 0.02,
            )
            assert low["types"] == {torch.float32}, model
            assert float(low["loss"]) == pytest.approx(float(full["loss"]), rel=2e-3), model
            assert 0.0 < near(low["gradients"], full["gradients"]) < share, model
            assert 0.0 < near(low["alpha"], full["alpha"]) < share, model
            assert torch.equal(low["scores"], full["scores"]), model
            for ours, theirs in zip(low["statistics"], full["statistics"], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=4e-3, atol=4e-3, msg=model)
            for field, gradient in low["tables"].items():
                assert near(gradient, full["tables"][field]) < share, (model, field)


def test_the_pairs_of_a_factorization_machine_do_not_cancel() -> None:
    """One of two fields is a thousand times longer: in bfloat16, the two sums of squares would cancel."""
    from ham_dist.models.fm import FM, FMSettings

    torch.manual_seed(0)
    model = FM({"a": 4, "b": 4}, FMSettings(lift_dim=4))
    columns = torch.cat([torch.randn(64, 4) * 1000, torch.randn(64, 4)], dim=1)
    expected = model(columns).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(columns).detach()
    assert found.dtype == torch.float32
    assert near(found, expected) < 0.01


def test_small_columns_are_not_lost_next_to_a_bias() -> None:
    """Columns of 0.01 and biases of 0.1: in bfloat16, a tenth of row differences would be rounding."""
    torch.manual_seed(0)
    layers = nn.Sequential(*hidden_layers(16, [8])[:1])
    columns = torch.randn(256, 16) * 0.01
    expected = layers(columns).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = layers(columns).detach()
    assert found.dtype == torch.float32
    assert near(found - found.mean(0), expected - expected.mean(0)) < 0.01


@pytest.mark.parametrize("model", ["dcnv2", "deepfm"])
def test_an_alpha_step_leaves_every_bit_under_bfloat16(model: str) -> None:
    run = settings(
        model, optimizer={"tables": "rowwise_adagrad"}, orthogonality={"application": "decoupled"}, **BFLOAT16
    )
    assert run_on_ranks(2, alpha_steps, run) == [[], []]
