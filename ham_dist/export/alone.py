"""Writing a bundle from one process, independently of other ranks."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ham_dist.export.parts import whole_tables, write_parts
from ham_dist.export.vocabulary import VocabularySource
from ham_dist.export.writer import Description, encode_tables, finish, open_folder

if TYPE_CHECKING:
    from ham_dist.embedding.tables import TableChunk


def write_bundle_alone(
    out: Path,
    description: Description,
    *,
    chunks: Iterable["TableChunk"],
    dense: Mapping[str, torch.Tensor],
    verify: Callable[[Path], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write the bundle `out` from this process, without waiting for other ranks.

    Args:
        chunks: All rows of all tables.
        dense, verify: As for `write_bundle`.
    Returns:
        The return value of `verify`.
    Raises:
        BundleError: As for `write_bundle`.
    """
    with open_folder(out) as partial:
        tables = whole_tables(description.fields, list(write_parts(partial, description.fields, chunks, ())))
        encoded = encode_tables(partial, tables, description.precision)
        return finish(partial, out, description, encoded, dense, VocabularySource(None, None), verify)
