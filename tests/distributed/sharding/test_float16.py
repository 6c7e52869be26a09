"""Float16 tables: sharding, regularizer and alpha, against plain torch with the kernels' rounding."""

from typing import Any

import pytest
import torch

from ham_dist.config.schema import RunSettings
from tests.support.ranks import run_on_ranks
from tests.support.sharded_model import alpha_steps, settings
from tests.support.sharding_types import KINDS, MIXED, RATE, TURNED, all_cases, plain_tables

HALVES: dict[str, dict[str, Any]] = {
    "table_wise": {"sharding_type": "table_wise"},
    **{name: KINDS[name] for name in ("row_wise", "column_wise", "grid", "table_row_wise")},
    "mixed": {"sharding_types": MIXED | {"gender": "table_wise"}},
    "turned": {"sharding_types": TURNED | {"movie": "table_row_wise"}},
}
SPACING = 2.0**-10
"""From one float16 to the next between 1 and 2; no number of these tables is larger."""


def halves(
    table_optimizer: str, sharding: dict[str, Any], orthogonality: dict[str, Any] | None = None
) -> RunSettings:
    return settings(
        "dcnv2",
        optimizer={"tables": table_optimizer, "tables_learning_rate": RATE},
        sharding=sharding,
        orthogonality=orthogonality or {"form": "none"},
        precision={"tables": "float16"},
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_float16_tables_move_as_in_plain_torch_under_every_optimizer_and_sharding_type(ranks: int) -> None:
    """Equal bits; but a sum in another order may round to the next float16, in at most 1 % of cases."""
    of_rule = {
        "sgd": list(HALVES),
        "adagrad": ["mixed", "turned"],
        "rowwise_adagrad": ["table_wise", "row_wise", "table_row_wise"],
    }
    cases = {
        f"{table_optimizer} {name}": halves(table_optimizer, HALVES[name])
        for table_optimizer, names in of_rule.items()
        for name in names
    }
    results = run_on_ranks(ranks, all_cases, cases)
    for name, found in results[0].items():
        plain = plain_tables(cases[name], found["start"])
        ours, theirs = (
            torch.cat([table.flatten() for table in found["tables"].values()]),
            torch.cat([table.flatten() for table in plain]),
        )
        start = torch.cat([table.flatten() for table in found["start"].values()])
        assert torch.equal(ours.half().float(), ours), name
        assert float(start.abs().max()) < 2.0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=SPACING, msg=name)
        assert float((ours == theirs).float().mean()) > 0.99, name
        assert float((ours != start).float().mean()) > 0.5, name
        torch.testing.assert_close(
            found["norms"], torch.cat([table.norm(dim=0) for table in found["tables"].values()]), msg=name
        )
        assert all(
            torch.equal(other[name]["gradient"], found["gradient"])
            and other[name]["losses"] == found["losses"]
            for other in results[1:]
        )


def test_the_decoupled_regularizer_moves_float16_tables_alike_under_every_sharding_type() -> None:
    """Products in float32, rounded when written: a few float16 steps from float32 tables, same direction."""
    decoupled = {"application": "decoupled", "every": 1, "rows": 16, "weight": 0.5}
    cases = {name: halves("sgd", sharding, decoupled) for name, sharding in HALVES.items()}
    cases["without"] = halves("sgd", HALVES["table_wise"])
    cases["float32"] = cases["table_wise"].model_copy(
        update={"precision": cases["table_wise"].precision.model_copy(update={"tables": "float32"})}
    )
    results = run_on_ranks(2, all_cases, cases)[0]
    for name in HALVES:
        for field, table in results[name]["tables"].items():
            torch.testing.assert_close(
                table, results["float32"]["tables"][field], rtol=0, atol=4 * SPACING, msg=f"{name}: {field}"
            )
    moved = max(
        float((table - results["without"]["tables"][field]).abs().max())
        for field, table in results["table_wise"]["tables"].items()
    )
    assert moved > 20 * SPACING
    assert results["table_wise"]["regularizer"] == pytest.approx(results["float32"]["regularizer"], rel=1e-3)


@pytest.mark.parametrize("sharding", [HALVES["mixed"], HALVES["turned"]])
def test_an_alpha_step_leaves_every_bit_of_float16_tables(sharding: dict[str, Any]) -> None:
    run = halves("adagrad", sharding, {"application": "decoupled", "every": 1})
    assert run_on_ranks(2, alpha_steps, run) == [[], []]
