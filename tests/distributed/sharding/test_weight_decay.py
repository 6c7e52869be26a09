"""Coupled L2 of the tables: against torch.optim.Adam, against its formula, and on any number of ranks."""

from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
    WeightDecayMode,
)

from ham_dist.config.schema import RunSettings
from ham_dist.training.loop import weight_step
from ham_dist.training.state import open_supernet
from tests.support.plain_model import FIELDS
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import (
    everything,
    local_batch,
    plain_batch,
    plain_three_steps,
    settings,
    whole_tables,
)
from tests.support.sharding_types import KINDS, WHOLE, all_cases

DECAY = {"tables_weight_decay": 0.1}
NONE = {"form": "none"}
RATE = 1e-3


@pytest.mark.parametrize("ranks", [1, 3])
def test_it_is_the_weight_decay_of_adam_under_every_sharding_type(ranks: int) -> None:
    """To 1e-5, as without it: sums are in another order. It adds to orthogonality, which is on here."""
    cases = {name: settings("dcnv2", optimizer=DECAY, sharding=kind) for name, kind in KINDS.items()}
    results = run_on_ranks(ranks, all_cases, cases)[0]
    plain = plain_three_steps(cases["mixed"], results["mixed"]["start"])
    without = plain_three_steps(settings("dcnv2"), results["mixed"]["start"])
    for name, found in results.items():
        for field, module, other in zip(FIELDS, plain["model"].bags, without["model"].bags, strict=True):
            torch.testing.assert_close(
                found["tables"][field], module.weight.detach(), rtol=0, atol=1e-5, msg=f"{name}: {field}"
            )
            assert float((module.weight - other.weight).detach().abs().max()) > 1e-3


def one_step() -> dict[str, Any]:
    """The user tables before and after a step on DeepFM, and all else that the decay changes in it."""
    after = {}
    for decay in (0.0, 0.1):
        sections = {"optimizer": {"tables_weight_decay": decay}, "orthogonality": NONE}
        model = {"name": "deepfm", "init_std": 0.3, "base_dim": 8, "first_order": "table"}
        run = RunSettings.model_validate({"model": model, **sections})
        state = open_supernet(run, FIELDS, torch.device("cpu"))
        state.sharded.first_order["user"].values.fill_(1.0)
        before = whole_tables(state)["user"]
        weight_step(state, local_batch(0))
        after[decay] = everything(state)
    changed = [name for name, values in after[0.0].items() if not torch.equal(values, after[0.1][name])]
    return {"before": before, "after": whole_tables(state)["user"], "changed": changed}


def test_a_row_outside_the_batch_takes_adams_first_step_for_the_gradient_lambda_v() -> None:
    """Adam's first step is rate * g / (|g| + 1e-8), with g = 0.1 v; to 1e-7, since tables are float32."""
    found = run_on_ranks(1, one_step)[0]
    values, _ = plain_batch(0)[0][0]
    outside = torch.ones(FIELDS["user"], dtype=torch.bool).index_fill(0, values, False)
    assert outside.sum() > 10
    before = found["before"][outside].double()
    expected = before - RATE * 0.1 * before / (0.1 * before.abs() + 1e-8)
    torch.testing.assert_close(found["after"][outside].double(), expected, rtol=0, atol=1e-7)
    # It changes the tables under search and Adam's moments of them: no first-order table, no dense weight.
    assert {name.split("/", 1)[1] for name in found["changed"] if name.startswith("exp")} == {
        f"tables.ebc/{field}/0" for field in FIELDS
    }
    assert all("tables.ebc/" in name for name in found["changed"])


def tables_after_three_steps(run: RunSettings) -> dict[str, torch.Tensor]:
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    for seed in range(3):
        weight_step(state, local_batch(seed))
    return whole_tables(state)


def test_in_float64_it_is_the_same_on_any_number_of_ranks() -> None:
    """Shards have 16 n numbers: torch's fused Adam rounds the last few numbers of others differently."""
    sections: dict[str, Any] = {
        "optimizer": DECAY,
        "orthogonality": NONE,
        "precision": {"dense": "float64"},
        "sharding": {"sharding_type": "row_wise", "sharding_types": WHOLE},
    }
    run = settings("dcnv2", **sections)
    one, two, three = (run_on_ranks(ranks, tables_after_three_steps, run)[-1] for ranks in (1, 2, 3))
    for field, table in one.items():
        assert torch.equal(two[field], table)
        assert torch.equal(three[field], table)


@pytest.mark.parametrize(
    "kind", [EmbOptimType.EXACT_SGD, EmbOptimType.EXACT_ADAGRAD, EmbOptimType.EXACT_ROWWISE_ADAGRAD]
)
def test_fbgemms_cpu_kernels_ignore_weight_decay(kind: EmbOptimType) -> None:
    """The reason to update samples of rows in their place."""
    found = []
    for decay, mode in ((0.0, WeightDecayMode.NONE), (0.5, WeightDecayMode.L2)):
        kernel = SplitTableBatchedEmbeddingBagsCodegen(
            [(6, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=kind,
            learning_rate=0.1,
            weight_decay=decay,
            weight_decay_mode=mode,
        )
        (table,) = kernel.split_embedding_weights()
        table.fill_(1.0)
        kernel(torch.tensor([1, 1, 3]), torch.tensor([0, 2, 3])).square().sum().backward()
        found.append(table.clone())
    assert not torch.equal(found[0][1], torch.ones(4))
    assert torch.equal(*found)
