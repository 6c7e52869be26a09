"""Bundles written on one rank or several are read back unchanged."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ham_dist.distributed.ranks import process_group
from ham_dist.embedding.tables import TableChunk
from ham_dist.errors import BundleError, HamError
from ham_dist.export.bundle import open_bundle
from ham_dist.export.codecs.registry import codec_of
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.verify import probabilities, verify_bundle
from ham_dist.export.writer import Description, write_bundle
from ham_dist.io.atomic import temporary_path
from ham_dist.models.registry import INTERACTIONS
from tests.support.live_models import chunks, export, live_model, some_ids
from tests.support.ranks import run_on_ranks


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("first_order", ["linear", "table"])
@pytest.mark.parametrize("name", INTERACTIONS)
def test_bundle_gives_the_live_models_probabilities(
    tmp_path: Path, name: str, first_order: str, precision: str
) -> None:
    live, ids = live_model(name, first_order), some_ids()
    expected = live.probabilities(ids)
    report = export(
        live,
        tmp_path / "bundle",
        precision=precision,
        verify=lambda path: verify_bundle(path, [ids], expected),
    )
    assert report["max_difference"] <= codec_of(precision).tolerance.probability
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.verified == report
    model = bundle.model()
    torch.testing.assert_close(
        probabilities(model, [ids]), expected, rtol=0, atol=codec_of(precision).tolerance.probability
    )
    assert {table.values.dtype for table in model.tables} == {
        torch.float32 if precision == "fp32" else torch.float16
    }
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    reads_gone = name in ("fm", "deepfm") and first_order == "table"
    assert sorted(model.read_fields) == sorted(ids if reads_gone else set(ids) - {"gone"})


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_tables_in_many_parts_are_one_file_each(tmp_path: Path, rows: int) -> None:
    live = live_model()
    export(live, tmp_path / "bundle", chunks=reversed(chunks(live.tables, rows)))
    bundle = open_bundle(tmp_path / "bundle")
    for field, table in bundle.tables().items():
        assert torch.equal(table, live.tables[field]), field
    for table_entry in bundle.manifest.tables:
        assert len(table_entry.files) == 1


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    numbers=st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=30),
    width=st.integers(1, 5),
    names=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        min_size=1,
        max_size=3,
        unique=True,
    ),
    precision=st.sampled_from(["fp32", "fp16"]),
)
def test_any_table_under_any_name_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    numbers: list[float],
    width: int,
    names: list[str],
    precision: str,
) -> None:
    table = torch.tensor(numbers).repeat(width, 1).T.contiguous()
    fields = [FieldEntry(name=name, num_embeddings=len(numbers), embedding_dim=width) for name in names]
    out = tmp_path_factory.mktemp("any") / "bundle"
    write_bundle(
        out,
        Description(fields, None, precision),
        chunks=chunks(dict.fromkeys(names, table)),
        dense={"w": table},
    )
    bundle = open_bundle(out)
    assert list(bundle.tables()) == names
    assert all(torch.equal(found.float(), table) for found in bundle.tables().values())
    assert torch.equal(bundle.dense()["w"], table)
    assert {path.relative_to(out).parts[0] for path in out.rglob("*")} == {
        "manifest.json",
        "dense.safetensors",
        "tables",
    }


def test_opening_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    export(live_model("autoint"), tmp_path / "bundle")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    open_bundle(tmp_path / "bundle").model()
    assert torch.equal(torch.rand(3), expected)


def test_custom_bundle_gives_tensors_and_says_how(tmp_path: Path) -> None:
    live = live_model()
    fields = [
        FieldEntry(name=field, num_embeddings=len(table), embedding_dim=table.shape[1])
        for field, table in live.tables.items()
    ]
    write_bundle(
        tmp_path / "bundle",
        Description(fields, None),
        chunks=chunks(live.tables),
        dense={"my.weight": torch.ones(2, 3)},
    )
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.kind == "custom"
    assert bundle.dense()["my.weight"].tolist() == [[1.0] * 3] * 2
    with pytest.raises(BundleError, match=r"(?s)kind = 'custom'.*\.tables\(\).*\.dense\(\)"):
        bundle.model()


def test_compact_model_goes_through_torch_export(tmp_path: Path) -> None:
    export(live_model(), tmp_path / "bundle")
    model, ids = open_bundle(tmp_path / "bundle").model(), some_ids()
    flat = {field: (ids[field] if field != "genres" else torch.arange(13) % 7) for field in model.read_fields}
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(
        model, (flat,), dynamic_shapes=({field: {0: rows} for field in flat},), strict=False
    )
    fewer = {field: values[:5] for field, values in flat.items() if isinstance(values, torch.Tensor)}
    torch.testing.assert_close(program.module()(fewer), model(fewer))


def test_refuses_what_the_precision_cannot_hold(tmp_path: Path) -> None:
    live = live_model()
    live.tables["age"][1] = 65504
    export(live, tmp_path / "largest", precision="fp16")
    live.tables["age"][1] = -70000
    with pytest.raises(BundleError, match=r"'age'.*70000.*65504"):
        export(live, tmp_path / "bundle", precision="fp16")
    live.tables["age"][1] = math.nan
    with pytest.raises(BundleError, match=r"'age'.*not finite"):
        export(live, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["largest"]


def test_refuses_rows_that_do_not_make_the_tables(tmp_path: Path) -> None:
    live = live_model()
    whole = chunks(live.tables, rows=2)
    for broken, message in [
        (
            [chunk for chunk in whole if (chunk.field, chunk.first_row) != ("user", 4)],
            "table 'user': rows 4 to 5 are missing",
        ),
        (
            [chunk for chunk in whole if (chunk.field, chunk.first_row) != ("user", 10)],
            "hold 10 rows, expected 11",
        ),
        ([*whole, whole[2]], "table 'user': rows 4 to 5 occur twice"),
        ([chunk for chunk in whole if chunk.field != "age"], "expected one for each field with columns"),
        ([*whole, TableChunk("stranger", 0, torch.ones(1, 1))], "'stranger'"),
        ([*whole[:-1], TableChunk("age", 2, torch.ones(1, 2))], "1 and 2 columns"),
    ]:
        with pytest.raises(BundleError, match=message):
            export(live, tmp_path / "bundle", chunks=broken)
    assert not list(tmp_path.iterdir())


def test_refuses_a_model_that_is_not_the_live_one(tmp_path: Path) -> None:
    live, ids = live_model(), some_ids()
    expected = live.probabilities(ids)
    for wrong, message in [
        (expected + 1e-4, "differ from the live model's by up to 0.0001"),
        (expected[:-1], "13 records.*12 probabilities"),
    ]:
        with pytest.raises(BundleError, match=message):
            export(
                live, tmp_path / "bundle", verify=lambda path, wrong=wrong: verify_bundle(path, [ids], wrong)
            )
    with pytest.raises(BundleError, match="at least 1"):
        export(live, tmp_path / "bundle", verify=lambda path: verify_bundle(path, [], torch.empty(0)))
    assert not list(tmp_path.iterdir())


def test_never_writes_over_something(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    with pytest.raises(BundleError, match="never overwritten"):
        export(live_model(), out, chunks=None)
    out.rmdir()
    out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="never overwritten"):
        export(live_model(), out)
    assert out.is_symlink()


def test_a_users_file_of_a_similar_name_stays(tmp_path: Path) -> None:
    mine = tmp_path / "bundle.partial"
    mine.mkdir()
    (mine / "junk").write_text("mine")
    export(live_model(), tmp_path / "bundle")
    assert (mine / "junk").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.partial"]


def test_what_a_killed_export_left_is_deleted_by_the_next(tmp_path: Path) -> None:
    killed, other = temporary_path(tmp_path / "bundle"), temporary_path(tmp_path / "other")
    for folder in (killed, other):
        (folder / "tables").mkdir(parents=True)
    export(live_model(), tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.name, "bundle"])


def test_says_what_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BundleError, match=r"cannot be written: No space left on device. Make room"):
        export(live_model(), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def _export_on_ranks(out: Path, rows: int) -> dict[str, float]:
    live, ids = live_model("deepfm", "table"), some_ids()
    place = {"rows": rows, "rank": process_group.rank(), "world_size": process_group.world_size()}
    return export(
        live,
        out,
        chunks=chunks(live.tables, **place),
        first_order_chunks=chunks(live.first_order, **place),
        verify=lambda path: verify_bundle(path, [ids], live.probabilities(ids)),
    )


def test_ranks_write_what_one_rank_writes(tmp_path: Path) -> None:
    reports = run_on_ranks(2, _export_on_ranks, tmp_path / "two", 3)
    assert reports[0] == reports[1]
    # Computed on a rank: with another number of threads BatchNorm's statistics differ in the last digits.
    run_on_ranks(1, _export_on_ranks, tmp_path / "one", 3)
    files = {path: json.loads((tmp_path / path / "manifest.json").read_text()) for path in ("one", "two")}
    assert files["one"] == files["two"]


def _one_rank_fails(out: Path) -> str:
    live = live_model()

    def failing() -> Iterator[TableChunk]:
        yield from chunks(live.tables, rank=process_group.rank(), world_size=2)
        if process_group.rank() == 1:
            raise BundleError("the disk of rank 1 is full")

    try:
        export(live, out, chunks=failing())
    except HamError as error:
        return str(error)
    return "no error"


def test_failure_of_one_rank_is_that_of_all(tmp_path: Path) -> None:
    messages = run_on_ranks(2, _one_rank_fails, tmp_path / "bundle")
    assert messages == ["rank 1: the disk of rank 1 is full", "the disk of rank 1 is full"]
    assert not list(tmp_path.iterdir())
