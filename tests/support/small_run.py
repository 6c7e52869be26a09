"""Runs of a few seconds on generated data, for tests of whole runs."""

from typing import Any

from ham_dist.config.schema import RunSettings


def small_run(name: str = "dcnv2", **sections: dict[str, Any]) -> RunSettings:
    """Four fields, one of them noise; every stage takes several epochs. `sections` change single keys."""
    base: dict[str, dict[str, Any]] = {
        "data": {
            "synthetic": {
                "rows": 8_000,
                "planted_ranks": (3, 2, 1, 0),
                "num_embeddings": (60, 40, 20, 50),
                "signal": 3.0,
            },
            "batch_size": 256,
            "evaluation_batch_size": 500,
        },
        "model": {"name": name, "base_dim": 6},
        "optimizer": {"learning_rate": 3e-3, "tables_learning_rate": 3e-3},
        "pretrain": {"max_epochs": 4},
        "search": {
            "targets": [{"columns": 6}],
            "epochs": 3,
            "method": {"name": "ham", "alpha_learning_rate": 1e-2, "penalty": 5e-4},
        },
        "retrain": {"max_epochs": 3},
    }
    for key, section in sections.items():
        base[key] = {**base.get(key, {}), **section}
    return RunSettings.model_validate(base)


TINY_STEPS = 2 * (2 + 2 + 2) * 6
"""Training steps of a `tiny_run`, at most: early stopping may end a stage sooner."""


def tiny_run(**sections: dict[str, Any]) -> RunSettings:
    """Three fields, two epochs of twelve steps a stage, and a checkpoint every five steps."""
    base: dict[str, dict[str, Any]] = {
        "data": {
            "synthetic": {
                "rows": 1_000,
                "planted_ranks": (2, 2, 0),
                "num_embeddings": (30, 20, 10),
                "signal": 3.0,
            },
            "batch_size": 64,
            "evaluation_batch_size": 200,
        },
        "model": {"base_dim": 4},
        "pretrain": {"max_epochs": 2},
        "search": {"targets": [{"columns": 4}], "epochs": 2},
        "retrain": {"max_epochs": 2},
        "checkpoint": {"every_steps": 5},
    }
    for key, section in sections.items():
        base[key] = {**base.get(key, {}), **section}
    return small_run("dcnv2", **base)
