"""Tables of a bundle are mapped: opening reads none of them, and no copy of them is made."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ham_dist.export.aligned import DTYPES
from ham_dist.export.bundle import open_bundle
from ham_dist.export.codecs.registry import CODECS
from ham_dist.export.manifest import FieldEntry, read_manifest
from ham_dist.export.writer import Description, write_bundle
from ham_dist.io.hashing import sha256_of_json
from tests.support.live_models import chunks

ROWS, DIM = 50_001, 5


@pytest.fixture(params=CODECS)
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    fields = [FieldEntry(name="user", num_embeddings=ROWS, embedding_dim=DIM)]
    table = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0))
    write_bundle(
        tmp_path / "bundle",
        Description(fields, None, request.param),
        chunks=chunks({"user": table}),
        dense={"w": torch.ones(1)},
    )
    return tmp_path / "bundle"


def private_kilobytes(file: Path) -> int:
    """Private memory of this process in mappings of a file that is not the file's own pages."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(file))
        elif inside and line.startswith(("Private_Dirty:", "Anonymous:")):
            total += int(line.split()[1])
    return total


def test_the_rows_are_those_of_the_file(bundle: Path) -> None:
    entry = read_manifest(bundle).tables[0]
    file = bundle / entry.files[0].file
    stored = open_bundle(bundle).stored(entry)
    assert stored.stored["values"].data_ptr() % 64 == 0
    assert str(file) in Path("/proc/self/maps").read_text()
    before = stored(torch.tensor([0, ROWS - 1]))
    stored(torch.arange(ROWS))
    assert private_kilobytes(file) == 0
    with file.open("r+b") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
        assert start % 64 == 0
        first = json.loads(os.pread(opened.fileno(), start - 8, 8))["values"]["data_offsets"][0]
        assert first % 64 == 0
        opened.seek(start + first)
        opened.write(bytes(40))
    after = stored(torch.tensor([0, ROWS - 1]))
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_the_file_is_read_by_the_safetensors_library(bundle: Path) -> None:
    entry = read_manifest(bundle).tables[0]
    codec = CODECS[entry.codec]
    content = load_file(bundle / entry.files[0].file)
    assert not content.pop("padding", torch.zeros(1)).any()
    layout = codec.layout(ROWS, DIM)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in content.items()} == layout
    size = (bundle / entry.files[0].file).stat().st_size
    header = 8 + int.from_bytes((bundle / entry.files[0].file).read_bytes()[:8], "little")
    assert size - header == entry.stored_bytes
    assert {DTYPES[tensor.dtype] for tensor in layout.values()} <= {"F32", "F16", "U8"}


def test_opening_reads_no_rows(tmp_path: Path) -> None:
    """A table of 4 GiB, of which the disk has two blocks."""
    fields = [FieldEntry(name="user", num_embeddings=4, embedding_dim=2)]
    out = tmp_path / "bundle"
    write_bundle(
        out,
        Description(fields, None, "int8"),
        chunks=chunks({"user": torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 1.0], [1.0, 2.0]])}),
        dense={"w": torch.ones(1)},
    )
    rows = 1 << 31
    file = out / "tables/user.safetensors"
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:header])
    entries["values"] |= {"shape": [rows, 2], "data_offsets": [64, 64 + 2 * rows]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with file.open("wb") as written:
        written.write(len(text).to_bytes(8, "little") + text + content[header : header + 64])
        written.seek(2 * rows - 2, os.SEEK_CUR)
        written.write(bytes([255, 0]))
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["checksum"]
    manifest["fields"][0]["num_embeddings"] = manifest["tables"][0]["num_embeddings"] = rows
    manifest["tables"][0]["files"][0]["rows"] = rows
    manifest["files"]["tables/user.safetensors"]["size"] = file.stat().st_size
    (out / "manifest.json").write_text(json.dumps(manifest | {"checksum": sha256_of_json(manifest)}))
    if file.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("the file system has no sparse files")
    bundle = open_bundle(out)
    stored = bundle.stored(bundle.manifest.tables[0])
    assert stored(torch.tensor([0, rows - 1])).tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert bundle.manifest.table_bytes == 2 * rows + 64
