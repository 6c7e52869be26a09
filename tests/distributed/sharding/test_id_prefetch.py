"""Ids sent ahead: the same numbers, and no lookup that has to wait for an exchange of its own."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torchrec.distributed.comm_ops import get_gradient_division
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.config.schema import RunSettings
from ham_dist.data.reader.batch import Batch
from ham_dist.data.reader.order import rows_of_rank
from ham_dist.distributed.planning.placement import Placement, TableShard
from ham_dist.distributed.ranks import process_group
from ham_dist.embedding.tables import Table
from ham_dist.training.evaluation import predict
from ham_dist.training.loop import mask_gradient, weight_step
from ham_dist.training.state import TrainingState, open_supernet
from tests.support.plain_model import FIELDS
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import dense_weights, part_of_batch, whole_tables

PLANS: dict[str, dict[str, Any]] = {
    "auto": {},
    "row_wise": {"sharding_type": "row_wise"},
    "mixed": {
        "sharding_types": {
            "user": "row_wise",
            "gender": "data_parallel",
            "movie": "column_wise",
            "genres": "table_wise",
        }
    },
}
ROWS = 50
STEPS = 5


def stream(first: int, *, last_rows: int = ROWS) -> Iterator[Batch]:
    """This rank's parts of global batches; the ranks' parts differ in size."""
    for seed in range(first, first + STEPS):
        rows = ROWS if seed < first + STEPS - 1 else last_rows
        yield part_of_batch(seed, rows, *rows_of_rank(rows, process_group.rank(), process_group.world_size()))


def run_settings(plan: dict[str, Any], *, prefetch_ids: bool) -> RunSettings:
    """DeepFM with first-order tables: two collections of tables."""
    model = {"name": "deepfm", "first_order": "table", "init_std": 0.3, "base_dim": 8}
    return RunSettings.model_validate(
        {"model": model, "sharding": plan, "ranks": {"prefetch_ids": prefetch_ids}}
    )


def alternating_steps(run: RunSettings) -> dict[str, Any]:
    """Alternates two streams, as a search does, then evaluates with a small last batch."""
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    mask = (torch.arange(state.sharded.mask.layout.size) % 3 > 0).float()
    validation, gradients = state.batches(stream(100)), []
    for batch in state.batches(stream(0)):
        gradients.append(mask_gradient(state, next(validation), mask))
        weight_step(state, batch)
    logits, _ = predict(state, stream(200, last_rows=3))
    return {
        "gradients": torch.stack(gradients),
        "tables": whole_tables(state),
        "dense": dense_weights(state),
        "logits": logits,
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_no_number_depends_on_it(ranks: int, plan: str) -> None:
    ahead = run_on_ranks(ranks, alternating_steps, run_settings(PLANS[plan], prefetch_ids=True))
    at_once = run_on_ranks(ranks, alternating_steps, run_settings(PLANS[plan], prefetch_ids=False))
    for one, other in zip(ahead, at_once, strict=True):
        assert_same(one, other)


def exchanges_inside_steps(run: RunSettings) -> tuple[int, int]:
    """Returns the number of id exchanges that started within a step, and their total number."""
    inside, everywhere, in_step = 0, 0, False
    original = ShardedEmbeddingBagCollection.input_dist

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside, everywhere
        inside, everywhere = inside + in_step, everywhere + 1
        return original(*args, **kwargs)

    ShardedEmbeddingBagCollection.input_dist = counted
    try:
        state = open_supernet(run, FIELDS, torch.device("cpu"))
        for batch in state.batches(stream(0)):
            in_step = True
            weight_step(state, batch)
            in_step = False
    finally:
        ShardedEmbeddingBagCollection.input_dist = original
    return inside, everywhere


@pytest.mark.parametrize("plan", PLANS)
def test_a_step_begins_no_exchange(plan: str) -> None:
    collections = 2
    assert (
        run_on_ranks(2, exchanges_inside_steps, run_settings(PLANS[plan], prefetch_ids=True))
        == [(0, collections * STEPS)] * 2
    )
    assert (
        run_on_ranks(2, exchanges_inside_steps, run_settings(PLANS[plan], prefetch_ids=False))
        == [(collections * STEPS,) * 2] * 2
    )


def steps_with_breaks(run: RunSettings) -> dict[str, Any]:
    """Looks up a batch again after its step, and leaves streams unfinished, as a stopped epoch does."""
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    again = _gradient_of_last(state, state.batches(stream(0)))
    _gradient_of_last(state, state.batches(islice(stream(50), 2)))
    return {"again": again, "tables": whole_tables(state), "dense": dense_weights(state)}


def _gradient_of_last(state: TrainingState, batches: Iterator[Batch]) -> torch.Tensor:
    batch = next(batches)
    weight_step(state, batch)
    return mask_gradient(state, batch, torch.ones(state.sharded.mask.layout.size))


@pytest.mark.parametrize("plan", PLANS)
def test_sent_ids_may_be_dropped_or_looked_up_again(plan: str) -> None:
    ahead, at_once = (
        run_on_ranks(2, steps_with_breaks, run_settings(PLANS[plan], prefetch_ids=value))
        for value in (True, False)
    )
    for one, other in zip(ahead, at_once, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_short_streams_come_whole(steps: int) -> None:
    assert run_on_ranks(2, labels_of, run_settings({}, prefetch_ids=True), steps) == run_on_ranks(
        2, labels_of, run_settings({}, prefetch_ids=False), steps
    )


def labels_of(run: RunSettings, steps: int) -> list[list[float]]:
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    return [batch.labels.tolist() for batch in state.batches(islice(stream(0), steps))]


def gradient_of_another_model(run: RunSettings) -> tuple[bool, torch.Tensor]:
    """Makes a step, then returns the gradient of a user's own sharded table under TorchRec's defaults."""
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    weight_step(state, next(stream(0)))
    table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=6, feature_names=["f"])
    collection = EmbeddingBagCollection(tables=[table], device=torch.device("meta"))
    placement = Placement(
        Table("t", 6, 4, 4, 4), "table_wise", fused=False, shards=(TableShard(0, 0, 6, 0, 4),)
    )
    plan = {"t": placement.sharding(torch.device("cpu"), 2)}
    model = DistributedModelParallel(
        collection,
        device=torch.device("cpu"),
        plan=ShardingPlan({"": EmbeddingModuleShardingPlan(plan)}),
    )
    ids = KeyedJaggedTensor(["f"], torch.tensor([2]), lengths=torch.tensor([1]))
    model(ids).values().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return get_gradient_division(), sum(gradients, start=torch.zeros(6, 4))


def test_another_model_in_the_process_keeps_torchrecs_mean_over_ranks() -> None:
    run = run_settings({"sharding_type": "table_wise"}, prefetch_ids=False)
    found = run_on_ranks(2, gradient_of_another_model, run)
    assert all(divides for divides, _ in found)
    expected = torch.zeros(6, 4)
    expected[2] = 1.0  # both ranks look the row up: the mean of 1 and 1, where the sum would be 2
    torch.testing.assert_close(sum(gradient for _, gradient in found), expected, rtol=0, atol=0)
