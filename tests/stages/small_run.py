"""A run of a few seconds on generated data, for tests of whole runs."""

from typing import Any

from ham_dist.config.schema import RunSettings


def small_run(name: str = "dcnv2", **sections: dict[str, Any]) -> RunSettings:
    """Four fields, one of them noise; every stage takes several epochs. `sections` change single keys."""
    base: dict[str, dict[str, Any]] = {
        "data": {
            "synthetic": {"rows": 8_000, "planted_ranks": (3, 2, 1, 0), "cardinalities": (60, 40, 20, 50), "signal": 3.0},
            "batch_size": 256,
            "evaluation_batch_size": 500,
        },
        "model": {"name": name, "base_width": 6},
        "optimizer": {"learning_rate": 3e-3, "tables_learning_rate": 3e-3},
        "pretrain": {"max_epochs": 4},
        "search": {"targets": [{"columns": 6}], "epochs": 3, "alpha_learning_rate": 1e-2, "push": 5e-4},
        "retrain": {"max_epochs": 3},
    }
    for key, section in sections.items():
        base[key] = {**base.get(key, {}), **section}
    return RunSettings.model_validate(base)
