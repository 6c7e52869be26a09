"""Values of `search.preset`: settings of several sections that belong together."""

from typing import Any

PRESETS: dict[str, dict[tuple[str, str], Any]] = {
    # Section 4.3 of the HAM paper; the same as the defaults.
    "paper": {
        ("orthogonality", "form"): "gram",
        ("optimizer", "tables_weight_decay"): 0.0,
        ("retrain", "column_dropout"): 0.0,
        ("retrain", "column_dropout_epochs"): 0,
    },
    # Chosen on validation data (docs/evidence.md).
    "best": {
        ("orthogonality", "form"): "none",
        ("optimizer", "tables_weight_decay"): 1e-4,
        ("retrain", "column_dropout"): 0.3,
        ("retrain", "column_dropout_epochs"): 10,
    },
}
"""By preset: values by section and key."""


def lay(tree: dict[str, Any], preset: Any, *, over: bool) -> None:
    """Puts a preset's values into a tree of settings.

    Args:
        tree: The settings, changed in place.
        preset: Name of the preset; an unknown one is left to validation.
        over: Replace values that the tree has.
    """
    for (section, key), value in PRESETS.get(preset, {}).items() if isinstance(preset, str) else ():
        held = tree.setdefault(section, {})
        if isinstance(held, dict) and (over or key not in held):
            held[key] = value
