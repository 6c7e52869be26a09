"""Results of a study that never ran, for tests of its report."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def outcome(
    arm: str,
    seed: int,
    columns: int | None = 14,
    *,
    auc: float | None = 0.8,
    model: str = "dcnv2",
    data: str = "ml",
    **values: Any,
) -> dict[str, Any]:
    """A line of results.jsonl, with the test AUC under `test_auc`; None as `columns` is the supernet."""
    kept = 91 if columns is None else columns
    return {
        "study": "paper-fig3",
        "key": f"{data}-{model}-{arm}-{columns}-{seed}",
        "group": f"{data}-{model}-seed-{seed}",
        "arm": arm,
        "data": {"name": data, "digest": f"digest-{seed}", "seed": seed},
        "model": model,
        "method": {"name": arm},
        "target": None if columns is None else {"columns": columns},
        "seed": seed,
        "settings": {
            "seed": seed,
            "search": {"epochs": 10, "method": {"name": arm}},
            "retrain": {"max_epochs": 20, "column_dropout_epochs": 0},
        },
        "columns": kept,
        "kept_columns": {"a": kept},
        "embedding_bytes": 4_000 * kept,
        "embedding_parameters": 1_000 * kept,
        "stored_bytes": None,
        "dense_parameters": 3 * kept**2 + 20 * kept + 369,
        "validation_auc": None if auc is None else auc + 0.01,
        "validation_logloss": 0.5,
        "epochs": {"pretrain": 5, "search": 10, "retrain": 10},
        "weight_steps": 7_200,
        "seconds": {"pretrain": 10.0, "search": 20.0, "retrain": 12.5},
        "versions": {"torch": "2.13.0"},
        "commit": "0123456789abcdef",
        "host": "a",
        "error": None,
        "test_auc": auc,
        **values,
    }


def write_study(folder: Path, outcomes: Iterable[dict[str, Any]], *, tested: bool = True) -> Path:
    """Writes results.jsonl, and tests.jsonl for the branches that did not fail, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, tests = [], []
    for entry in outcomes:
        auc = entry.pop("test_auc")
        lines.append(json.dumps(entry) + "\n")
        if tested and entry["error"] is None:
            tests.append(
                json.dumps({"key": entry["key"], "test_auc": auc, "test_logloss": 0.4, "rows": 100}) + "\n"
            )
    (folder / "results.jsonl").write_text("".join(lines), encoding="utf-8")
    if tested:
        (folder / "tests.jsonl").write_text("".join(tests), encoding="utf-8")
    return folder


def grid(
    auc: Callable[[str, int, int], float],
    arms: Iterable[str] = ("ham", "sam"),
    sizes: Iterable[int] = (14, 28),
    seeds: Iterable[int] = range(4),
    **values: Any,
) -> list[dict[str, Any]]:
    """Outcomes of all arms, sizes and seeds, with the AUC as a function of them."""
    return [
        outcome(arm, seed, size, auc=auc(arm, size, seed), **values)
        for arm in arms
        for size in sizes
        for seed in seeds
    ]
