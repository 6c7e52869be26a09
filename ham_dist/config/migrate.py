"""Settings as earlier versions wrote them into run folders and bundles, turned into those of this version."""

from collections.abc import Mapping
from typing import Any

METHOD_KEYS = ("alpha_start", "alpha_learning_rate", "alpha_every", "push")
"""Keys of [search] that belong to the method "ham"."""

MOVED = {f"search.{key}": f"search.method.{key}" for key in METHOD_KEYS}
"""The place of a key in this version, by its place in earlier ones."""

MODEL_KEYS: Mapping[str, tuple[str, ...]] = {
    "lift_width": ("fm", "deepfm", "autoint"),
    "first_order": ("fm", "deepfm"),
    "mlp": ("deepfm", "dcnv2"),
    "cross_layers": ("dcnv2",),
    "attention_layers": ("autoint",),
    "attention_heads": ("autoint",),
}
"""Keys of [model] that earlier versions wrote for every model, and the models that read them."""


def migrate_run(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run folder, as a tree of tables; those of this version come back as they are."""
    migrated = dict(tree)
    if isinstance(model := tree.get("model"), Mapping):
        migrated["model"] = migrate_model(model)
    search = tree.get("search")
    if isinstance(search, Mapping) and any(key in search for key in METHOD_KEYS):
        own = {key: search[key] for key in METHOD_KEYS if key in search}
        name = search.get("method", "ham")
        migrated["search"] = {key: value for key, value in search.items() if key not in METHOD_KEYS}
        migrated["search"]["method"] = {"name": name, **(own if name == "ham" else {})}
    return migrated


def migrate_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model without the keys that only other models read."""
    name = model.get("name")
    built_in = any(name in owners for owners in MODEL_KEYS.values())
    return {
        key: value
        for key, value in model.items()
        if not built_in or key not in MODEL_KEYS or name in MODEL_KEYS[key]
    }
