"""The sliced model trains as the masked one would: one more step gives the same weights.

So the optimizer state is sliced correctly too.
"""

from typing import Any

import pytest
import torch

from ham_dist.config.schema import RunSettings
from ham_dist.distributed.ranks.process_group import process_group
from ham_dist.embedding.mask import Columns
from ham_dist.training.loop import weight_step
from ham_dist.training.slicing import slice_state, slice_weight
from ham_dist.training.state import TrainingState, open_supernet
from tests.support.plain_model import FIELDS
from tests.support.sharded_model import local_batch, settings, whole_tables
from tests.support.sharding_types import MIXED

# `gender` loses its table, `genres` keeps one column.
OPEN = {"user": [0, 3, 5], "gender": [], "movie": [1, 2, 4, 6, 7], "genres": [2]}


def masked_and_narrow(run: RunSettings) -> tuple[TrainingState, TrainingState, Columns]:
    """Two steps of the supernet, two under the mask, and the cut."""
    state = open_supernet(run, FIELDS, torch.device("cpu"))
    columns = {field: torch.tensor(kept, dtype=torch.int64) for field, kept in OPEN.items()}
    for seed in (0, 1):
        weight_step(state, local_batch(seed))
    state.sharded.mask.set(state.sharded.mask.layout.join(columns))
    for seed in (2, 3):
        weight_step(state, local_batch(seed))
    return state, slice_state(state, columns), columns


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("dcnv2", {}),
        ("autoint", {}),
        ("deepfm", {"model": {"first_order": "table"}}),
        (
            "fm",
            {
                "model": {"first_order": "table"},
                "optimizer": {"tables": "rowwise_adagrad", "tables_learning_rate": 0.05},
            },
        ),
        ("dcnv2", {"optimizer": {"tables": "rowwise_adagrad", "tables_learning_rate": 0.05}}),
        ("deepfm", {"sharding": {"sharding_types": MIXED}}),
    ],
)
def test_a_step_of_the_sliced_model_is_the_masked_models_step(model: str, options: dict[str, Any]) -> None:
    """To 1e-6: shorter sums round otherwise. Without the regularizer, which looks at closed columns too.

    Row-wise Adagrad divides by the mean over the stored dim, which slicing changes: there the state itself is
    compared, before the step.
    """
    base = settings(model).model_dump()
    base["orthogonality"]["form"] = "none"
    for name, section in options.items():
        base[name].update(section)
    run = RunSettings.model_validate(base)
    with process_group():
        state, sliced, columns = masked_and_narrow(run)
        if run.optimizer.tables == "rowwise_adagrad":
            before, after = state.optimizers.table_states(), sliced.optimizers.table_states()
            assert len(after) == (7 if model == "fm" else 3)
            assert all(
                torch.equal(found["sum"], before[key]["sum"]) and found["sum"].abs().sum() > 0
                for key, found in after.items()
            )
            return
        assert sliced.optimizers.steps == state.optimizers.steps == 4
        weight_step(state, local_batch(4))
        weight_step(sliced, local_batch(4))
        wide_tables, narrow_tables = whole_tables(state), whole_tables(sliced)
        assert set(narrow_tables) == {"user", "movie", "genres"}
        for field, table in narrow_tables.items():
            torch.testing.assert_close(table, wide_tables[field][:, columns[field]], rtol=0, atol=1e-6)
        wide_dense = dict(state.interaction.named_parameters())
        for name, parameter in sliced.interaction.named_parameters():
            torch.testing.assert_close(
                parameter.detach(),
                slice_weight(state.interaction, name, wide_dense[name].detach(), columns),
                rtol=0,
                atol=1e-6,
            )
        for field, local in sliced.sharded.first_order.items():
            torch.testing.assert_close(
                local.values, state.sharded.first_order[field].values, rtol=0, atol=1e-6
            )
