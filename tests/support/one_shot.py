"""Scores of one-shot methods on the ranks of a test, and the batches they are computed from."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.distributed.ranks import process_group
from ham_dist.distributed.sharding import gram
from ham_dist.methods.budget import Budget
from ham_dist.methods.method import Method, SearchSpace
from ham_dist.methods.registry import METHODS
from ham_dist.stages.search import loss_of
from ham_dist.training.state import TrainingState, open_supernet
from tests.support.plain_model import FIELDS, SINGLE_VALUED, PlainModel, global_batch
from tests.support.sharded_model import part_of_batch, settings, whole_tables

BATCHES = {11: 31, 12: 31, 13: 5}
"""Rows of each batch, by its seed; the last is short."""
PlainLosses = list[tuple[int, Callable[[torch.Tensor], torch.Tensor]]]
KEPT = 12
"""Columns to keep, of the 27 of the supernet."""


def float64_run(model: str) -> RunSettings:
    """Equal results on any number of ranks; some tables have rows or columns on several of them."""
    types = {"user": "row_wise", "movie": "column_wise"}
    return settings(model, precision={"dense": "float64"}, sharding={"sharding_types": types})


def opened(state: TrainingState, name: str, **keys: Any) -> Method:
    layout = state.sharded.mask.layout
    space = SearchSpace(
        layout,
        Budget(Target(columns=KEPT), layout),
        lambda: gram.column_norms(state.sharded),
        0,
        state.sharded.device,
    )
    return METHODS[name](space, METHODS[name].Settings.model_validate(keys))


def scores_of(
    run: RunSettings, methods: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """On each rank: the tables of the supernet, and the scores by label; the settings include `name`."""
    state = open_supernet(run, FIELDS, torch.device("cpu"), SINGLE_VALUED)
    rank, ranks = process_group.rank(), process_group.world_size()
    found = {}
    for label, keys in methods.items():
        method = opened(state, **keys)
        batches = [
            part_of_batch(seed, rows, rows * rank // ranks, rows * (rank + 1) // ranks)
            for seed, rows in BATCHES.items()
        ]
        method.score(loss_of(state, batch, method.closed) for batch in batches)
        found[label] = method.tensors()["scores"]
    return whole_tables(state), found


def plain_losses(run: RunSettings, tables: Mapping[str, torch.Tensor], closed: str = "zero") -> PlainLosses:
    """Rows of each batch, and its loss as a function of the mask, in plain torch."""
    model = PlainModel(run, tables).double().eval()

    def loss_of_batch(seed: int, rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
        ids, labels = global_batch(rows, seed)
        starts = [(values, lengths.cumsum(0) - lengths) for values, lengths in ids]
        columns = model.columns(starts).detach()
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(run.seed))
        value = {"zero": torch.zeros(1), "mean": columns.mean(0, keepdim=True), "shuffled": columns[order]}[
            closed
        ]
        return lambda mask: functional.binary_cross_entropy_with_logits(
            model.interaction(columns * mask + value * (1 - mask)), labels.double()
        )

    return [(rows, loss_of_batch(seed, rows)) for seed, rows in BATCHES.items()]
