"""Converts the manifests of earlier format versions to the keys of this one."""

from collections.abc import Mapping
from typing import Any

from ham_dist.config.migrate import migrate_model
from ham_dist.export.codecs.floats import FloatCodec
from ham_dist.export.codecs.registry import CODECS

RENAMED: Mapping[str, str] = {"rows": "num_embeddings", "width": "embedding_dim"}
"""New keys of fields and tables, by the key of versions 1 and 2."""


def migrate_manifest(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of manifest.json with the keys of this version; values are checked later.

    Versions 1 and 2 have one precision for all tables, and the name of a torch dtype in each.
    """
    migrated = dict(content)
    if isinstance(model := migrated.get("model"), dict):
        migrated["model"] = migrate_model(model)
    if migrated.get("format_version") in (1, 2):
        migrated.pop("precision", None)
        for key in ("fields", "tables", "first_order"):
            if isinstance(entries := migrated.get(key), list):
                migrated[key] = [_renamed(entry) for entry in entries]
    return migrated


def _renamed(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    renamed = {RENAMED.get(key, key): value for key, value in entry.items()}
    if "type" in renamed:
        renamed["codec"] = _codec_of(renamed.pop("type"))
    return renamed


def _codec_of(dtype: Any) -> Any:
    """The name of the codec that stores numbers of a dtype, such as `float16`; else the dtype itself."""
    for codec in CODECS.values():
        if isinstance(codec, FloatCodec) and str(codec.dtype) == f"torch.{dtype}":
            return codec.name
    return dtype
