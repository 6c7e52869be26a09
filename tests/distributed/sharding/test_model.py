"""A sharded model against the same model in plain torch: losses, gradients, weights, alpha steps."""

from typing import Any

import pytest
import torch

from ham_dist.config.schema import RunSettings
from ham_dist.distributed.ranks import process_group
from ham_dist.training.loop import weight_step
from ham_dist.training.state import open_supernet
from tests.support.plain_model import FIELDS, SINGLE_VALUED, PlainModel
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import (
    MODELS,
    alpha_steps,
    everything,
    local_batch,
    plain_batch,
    plain_three_steps,
    settings,
    three_steps,
    whole_tables,
)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_steps_equal_plain_torch(model: str, ranks: int) -> None:
    """To 1e-5: sums over a batch are in another order, and Adam divides small gradients by their own size."""
    run = settings(model)
    results = run_on_ranks(ranks, three_steps, run)
    first = results[0]
    plain = plain_three_steps(run, first["start"])
    assert {part.rank for placement in first["plan"].placements for part in placement.shards} == set(
        range(ranks)
    )
    torch.testing.assert_close(
        torch.tensor(first["losses"]), torch.tensor(plain["losses"]), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(first["gradient"], plain["gradient"], rtol=1e-4, atol=1e-6)
    for (field, table), module in zip(first["tables"].items(), plain["model"].bags, strict=True):
        torch.testing.assert_close(table, module.weight.detach(), rtol=0, atol=1e-5)
        assert not torch.equal(table, first["start"][field])
    for name, values in plain["model"].interaction.state_dict().items():
        torch.testing.assert_close(first["dense"][name], values, rtol=0, atol=1e-5)
    assert first["regularizer"] == pytest.approx(float(plain["model"].regularizer().detach()), rel=1e-5)
    torch.testing.assert_close(
        first["norms"], torch.cat([module.weight.detach().norm(dim=0) for module in plain["model"].bags])
    )
    for other in results[1:]:
        assert other["losses"] == first["losses"]
        assert torch.equal(other["gradient"], first["gradient"])
        assert all(torch.equal(other["dense"][name], values) for name, values in first["dense"].items())


def test_a_table_starts_alike_on_any_number_of_ranks() -> None:
    starts = [run_on_ranks(ranks, three_steps, settings("fm"))[0]["start"] for ranks in (1, 3)]
    assert all(torch.equal(starts[0][field], starts[1][field]) for field in FIELDS)


SPREAD = {"user": "row_wise", "gender": "data_parallel", "genres": "data_parallel"}


@pytest.mark.parametrize("tables", ["adam", "rowwise_adagrad"])
@pytest.mark.parametrize(
    ("model", "sharding"), [("dcnv2", {}), ("autoint", {}), ("dcnv2", {"sharding_types": SPREAD})]
)
def test_an_alpha_step_leaves_every_bit_as_it_was(model: str, tables: str, sharding: dict[str, Any]) -> None:
    run = settings(
        model, optimizer={"tables": tables}, orthogonality={"application": "decoupled"}, sharding=sharding
    )
    assert run_on_ranks(2, alpha_steps, run) == [[], []]


def after_three_steps(run: RunSettings, single_valued: tuple[str, ...]) -> dict[str, torch.Tensor]:
    state = open_supernet(run, FIELDS, torch.device("cpu"), single_valued)
    for seed in range(3):
        weight_step(state, local_batch(seed))
    return everything(state)


@pytest.mark.parametrize("sharding", [{}, {"sharding_types": SPREAD}])
def test_a_field_of_one_value_a_row_is_its_own_mean_bit_for_bit(sharding: dict[str, Any]) -> None:
    run = RunSettings.model_validate(
        {
            "model": {"name": "deepfm", "first_order": "table"},
            "optimizer": {"tables": "rowwise_adagrad"},
            "orthogonality": {"application": "decoupled", "every": 1},
            "sharding": sharding,
        }
    )
    averaged, spared, wrong = (
        run_on_ranks(2, after_three_steps, run, fields) for fields in ((), SINGLE_VALUED, tuple(FIELDS))
    )
    for before, after in zip(averaged, spared, strict=True):
        assert len(before) > len(FIELDS)
        assert before.keys() == after.keys()
        assert [name for name, values in before.items() if not torch.equal(values, after[name])] == []
    assert any(not torch.equal(values, wrong[0][name]) for name, values in averaged[0].items()), (
        "genres has several: its mean was to be left out"
    )


def fused_steps(run: RunSettings) -> dict[str, Any]:
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    start = whole_tables(state)
    losses = [float(process_group.sum_over_ranks(weight_step(state, local_batch(seed)))) for seed in range(3)]
    padding = [
        local.values[:, local.table.embedding_dim :].abs().sum() for local in state.sharded.local.values()
    ]
    return {"start": start, "losses": losses, "tables": whole_tables(state), "padding": padding}


def test_fused_rowwise_adagrad_equals_its_formula_and_leaves_padding_at_zero() -> None:
    """Each row's step is lr / sqrt(mean over the stored dim of squared gradients, summed over steps)."""
    run = settings(
        "dcnv2",
        optimizer={"tables": "rowwise_adagrad", "tables_learning_rate": 0.05},
        orthogonality={"form": "none"},
    )
    results = {ranks: run_on_ranks(ranks, fused_steps, run) for ranks in (1, 2)}
    first = results[1][0]
    model = PlainModel(run, first["start"])
    dense = torch.optim.Adam(model.interaction.parameters(), lr=1e-3)
    history = [torch.zeros(table.weight.shape[0]) for table in model.bags]
    losses = []
    for seed in range(3):
        model.zero_grad()
        loss = model.loss(*plain_batch(seed))
        loss.backward()
        dense.step()
        for table, sums in zip(model.bags, history, strict=True):
            gradient = table.weight.grad
            assert gradient is not None
            stored = -(-gradient.shape[1] // 4) * 4
            sums += gradient.square().sum(dim=1) / stored
            with torch.no_grad():
                table.weight -= 0.05 * gradient / (sums.sqrt() + 1e-8)[:, None]
        losses.append(float(loss.detach()))
    for ranks_results in results.values():
        torch.testing.assert_close(
            torch.tensor(ranks_results[0]["losses"]), torch.tensor(losses), rtol=0, atol=2e-6
        )
        for table, module in zip(ranks_results[0]["tables"].values(), model.bags, strict=True):
            torch.testing.assert_close(table, module.weight.detach(), rtol=0, atol=2e-5)
        assert all(float(padding) == 0.0 for result in ranks_results for padding in result["padding"])
