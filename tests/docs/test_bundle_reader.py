"""The reader in NumPy of docs/bundle-format.md reads tables of every codec."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ham_dist.export.bundle import open_bundle
from ham_dist.export.codecs.registry import CODECS
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.writer import Description, write_bundle
from tests.support.live_models import chunks

PAGE = (Path(__file__).parents[2] / "docs" / "bundle-format.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dim", [1, 3, 16])
def test_every_codec(tmp_path: Path, codec: str, dim: int) -> None:
    code = PAGE.partition("```python\n")[2].partition("bundle = Path(")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    tables = {f"f.{rows}": torch.randn(rows, dim) for rows in (1, 2, 3, 4, 501)}
    fields = [
        FieldEntry(name=name, num_embeddings=len(table), embedding_dim=dim) for name, table in tables.items()
    ]
    out = tmp_path / "bundle"
    write_bundle(out, Description(fields, None, codec), chunks=chunks(tables), dense={"w": torch.ones(1)})
    manifest = names["read_manifest"](out)
    expected = open_bundle(out).tables()
    for table in manifest["tables"]:
        found = names["read_table"](out, table)
        assert np.array_equal(found, expected[table["field"]].numpy())
    assert list(expected) == list(tables)
