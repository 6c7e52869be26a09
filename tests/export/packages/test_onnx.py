"""ONNX packages in ONNX Runtime."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from ham_dist.errors import BundleError
from ham_dist.export.bundle import Bundle
from ham_dist.export.compact import StoredTable
from ham_dist.export.packages.check import TOLERANCE, generated_batches, read_fields
from ham_dist.export.packages.description import DESCRIPTION
from ham_dist.export.packages.graph import padded
from ham_dist.export.packages.onnx import MODEL
from ham_dist.export.packages.write import write_package
from tests.support.live_models import export, live_model
from tests.support.package_inputs import three_records


@pytest.fixture(scope="module")
def package(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "package"
    write_package(bundle.root, "onnx", out)
    return out


@pytest.fixture(scope="module")
def session(package: Path) -> Any:
    return onnxruntime.InferenceSession(package / MODEL)


def wanted(bundle: Bundle) -> torch.Tensor:
    given = {name: torch.from_numpy(values) for name, values in three_records().items()}
    ids = {name: values for name, values in given.items() if "." not in name}
    genres = given["genres.values"], given["genres.offsets"]
    return torch.sigmoid(bundle.model()({**ids, "genres": genres}))


def test_probabilities_are_the_bundles(bundle: Bundle, package: Path, session: Any) -> None:
    (found,) = session.run(["probability"], three_records())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted(bundle), rtol=0, atol=TOLERANCE)
    description = json.loads((package / DESCRIPTION).read_text())
    assert description["package"] == "onnx"
    assert description["bundle"] == json.loads((bundle.root / "manifest.json").read_text())["checksum"]
    assert description["verified"]["records"] == 1 + 2 + 7 + 64
    assert description["verified"]["max_difference"]["onnx"] <= TOLERANCE
    assert sorted(path.name for path in package.iterdir()) == [MODEL, f"{MODEL}.data", DESCRIPTION]


@pytest.mark.parametrize(
    ("field", "record", "wrong"),
    [
        ("user", 1, -1),
        ("user", 2, 11),
        ("age", 0, 1 << 40),
        ("zip", 0, -(1 << 63)),
        ("gone", 2, 6),
    ],
)
def test_an_id_outside_its_table_gives_nan_for_its_record_alone(
    bundle: Bundle, session: Any, field: str, record: int, wrong: int
) -> None:
    given = three_records()
    given[field][record] = wrong
    (found,) = session.run(None, given)
    expected = wanted(bundle)
    expected[record] = torch.nan
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_value_outside_the_table_of_a_multi_valued_field(bundle: Bundle, session: Any) -> None:
    for wrong in (-1, 7):
        (found,) = session.run(None, three_records(**{"genres.values": [1, wrong, 3]}))
        assert np.isnan(found).tolist() == [True, False, False]
        np.testing.assert_allclose(found[1:], wanted(bundle)[1:], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("offsets", [[0, 2, 1, 3], [1, 2, 2, 3], [0, 2, 2, 2], [0, 2, 2, 9], [0, -5, 2, 3]])
def test_wrong_offsets_give_nan_for_all(session: Any, offsets: list[int]) -> None:
    (found,) = session.run(None, three_records(**{"genres.offsets": offsets}))
    assert np.isnan(found).all()
    assert len(found) == 3


def test_tables_are_stored_in_the_encoding_of_the_bundle(bundle: Bundle, package: Path) -> None:
    model = onnx.load(package / MODEL, load_external_data=False)
    stored = {
        tensor.name: (tensor.data_type, list(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.name.endswith(".values")
    }
    types = {
        torch.uint8: onnx.TensorProto.UINT8,
        torch.float16: onnx.TensorProto.FLOAT16,
        torch.float32: onnx.TensorProto.FLOAT,
    }
    narrow = bundle.model()
    tables = [
        (f"model.{kind}.{place}.values", table.get_buffer("values"))
        for kind, modules in (("tables", narrow.tables), ("first_order", narrow.first_order))
        for place, table in enumerate(modules)
    ]
    assert stored == {name: (types[values.dtype], list(values.shape)) for name, values in tables}
    assert {kind for kind, _ in stored.values()} == set(types.values())


def test_padding_is_the_inverse_of_offsets() -> None:
    values, offsets = torch.tensor([4, 5, 6]), torch.tensor([0, 2, 2, 3])
    assert padded(values, offsets).tolist() == [[4, 5], [-1, -1], [6, -1]]
    assert padded(torch.empty(0, dtype=torch.int64), torch.tensor([0, 0])).tolist() == [[-1]]


def test_generated_ids_have_the_ends_of_every_table(bundle: Bundle) -> None:
    fields = read_fields(bundle)
    batches = list(generated_batches(fields))
    for field in fields:
        found = [ids if isinstance(ids := batch[field.name], torch.Tensor) else ids[0] for batch in batches]
        assert found[0].tolist() == [0]
        assert {0, field.num_embeddings - 1} <= set(found[1].tolist())
        assert torch.cat(found).max() == field.num_embeddings - 1
    lengths = torch.cat([batch["genres"][1].diff() for batch in batches])
    assert {0, 1, 3, 5} <= set(lengths.tolist())


def test_a_model_that_onnx_lacks_an_operation_for(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(self: StoredTable, ids: torch.Tensor) -> torch.Tensor:
        found = self.codec.decode(self.stored, ids)
        return torch.linalg.matrix_exp(found @ found.T) @ found

    monkeypatch.setattr(StoredTable, "forward", rows)
    with pytest.raises(BundleError, match=r"its model cannot be written as ONNX: .*\n.*Use another format"):
        write_package(bundle.root, "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fm", "autoint"])
def test_other_models(tmp_path: Path, name: str) -> None:
    export(live_model(name), tmp_path / "bundle", precision="int6")
    verified = write_package(tmp_path / "bundle", "onnx", tmp_path / "package").verified
    assert verified.max_difference["onnx"] <= TOLERANCE
