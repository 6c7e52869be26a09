"""Converts settings that earlier versions wrote to run folders and bundles."""

from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, str] = {
    "data.synthetic.cardinalities": "data.synthetic.num_embeddings",
    "model.base_width": "model.base_dim",
    "model.lift_width": "model.lift_dim",
    "model.table_start": "model.init_std",
    "sharding.kind": "sharding.sharding_type",
    "sharding.tables": "sharding.sharding_types",
    "sharding.memory": "sharding.compute_kernel",
    "sharding.memories": "sharding.compute_kernels",
    "sharding.cache_share": "sharding.cache_load_factor",
    "search.alpha_start": "search.method.alpha_init",
    "search.alpha_learning_rate": "search.method.alpha_learning_rate",
    "search.alpha_every": "search.method.alpha_every",
    "search.push": "search.method.penalty",
    "ranks.ids_ahead": "ranks.prefetch_ids",
}
"""New keys, by the key of version 0.1.0."""

COMPUTE_KERNELS = {"host": "fused_uvm", "cached": "fused_uvm_caching"}
"""Values of `sharding.compute_kernel`, by the value of version 0.1.0."""

MODEL_KEYS: Mapping[str, tuple[str, ...]] = {
    "lift_dim": ("fm", "deepfm", "autoint"),
    "first_order": ("fm", "deepfm"),
    "mlp": ("deepfm", "dcnv2"),
    "cross_layers": ("dcnv2",),
    "attention_layers": ("autoint",),
    "attention_heads": ("autoint",),
}
"""Keys of [model] that version 0.1.0 wrote for every model, and the models that use them."""


def migrate_run(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's settings, as a tree of tables, with the keys and values of this version."""
    migrated = _copy(tree)
    search = migrated.get("search")
    name = search.get("method", "ham") if isinstance(search, dict) else "ham"
    if isinstance(search, dict) and isinstance(name, str) and any(_has(tree, old) for old in _METHOD_KEYS):
        search["method"] = {"name": name}
    for old, new in RENAMED.items():
        if old.startswith("model."):
            continue  # by migrate_model, which bundles need alone
        section, key = _section(migrated, old)
        if section is None or key not in section:
            continue
        value = section.pop(key)
        if old in _METHOD_KEYS and name != "ham":
            continue  # version 0.1.0 wrote the keys of HAM for every method
        place, new_key = _section(migrated, new)
        if place is not None:
            place.setdefault(new_key, value)
    sharding = migrated.get("sharding")
    if isinstance(sharding, dict):
        if "compute_kernel" in sharding:
            sharding["compute_kernel"] = _kernel(sharding["compute_kernel"])
        if isinstance(kernels := sharding.get("compute_kernels"), dict):
            sharding["compute_kernels"] = {field: _kernel(value) for field, value in kernels.items()}
    if isinstance(model := migrated.get("model"), dict):
        migrated["model"] = migrate_model(model)
    return migrated


def migrate_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's settings from a bundle with new keys, and without keys that only other models use."""
    names = {old.removeprefix("model."): new.removeprefix("model.") for old, new in RENAMED.items()}
    name = model.get("name")
    built_in = any(name in owners for owners in MODEL_KEYS.values())
    renamed = {names.get(key, key): value for key, value in model.items()}
    return {
        key: value
        for key, value in renamed.items()
        if not built_in or key not in MODEL_KEYS or name in MODEL_KEYS[key]
    }


_METHOD_KEYS = tuple(old for old, new in RENAMED.items() if new.startswith("search.method."))


def _kernel(value: Any) -> Any:
    return COMPUTE_KERNELS.get(value, value) if isinstance(value, str) else value


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _section(tree: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """The table of a dotted key (None if the tree has no such table), and the key's last part."""
    *parents, last = key.split(".")
    section: Any = tree
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    return (section if isinstance(section, dict) else None), last


def _has(tree: Mapping[str, Any], key: str) -> bool:
    section, last = _section(dict(tree), key)
    return section is not None and last in section
