"""Triton model repositories: the configurations by Triton's definitions, the Python backend in a stand-in."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ham_dist.export.bundle import Bundle
from ham_dist.export.packages.check import TOLERANCE
from ham_dist.export.packages.triton import BY_IDS, BY_RECORDS
from ham_dist.export.packages.write import write_package
from ham_dist.serving import Scorer
from tests.support.live_models import export, live_model
from tests.support.triton_backend import InferenceRequest, Tensor, load_model

RECORDS: list[dict[str, Any]] = [
    {"user": "u3", "genres": "g2|g1", "age": "a1", "gone": "g1", "zip": "z29"},
    {"user": "", "genres": "", "age": "nobody", "gone": "g5", "zip": "z1"},
    {"user": "u10", "genres": "g6", "age": "a2", "gone": "", "zip": "z7"},
]
IDS: dict[str, Any] = {
    "user": [3, 0, 10],
    "genres": [[2, 1], [0], [6]],
    "age": [1, 0, 2],
    "gone": [1, 5, 0],
    "zip": [29, 1, 7],
}


@pytest.fixture(scope="module")
def package(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "models"
    write_package(bundle.root, "triton", out)
    return out


def config_of(package: Path, name: str) -> Any:
    text = (package / name / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def request(records: list[dict[str, Any]], **changes: Any) -> InferenceRequest:
    columns = {name: [record[name].encode() for record in records] for name in records[0]} | changes
    return InferenceRequest(
        [
            Tensor(name, np.array(cells, object).reshape(-1, 1))
            for name, cells in columns.items()
            if cells is not None
        ]
    )


def test_the_model_by_ids(bundle: Bundle, package: Path) -> None:
    config = config_of(package, BY_IDS)
    assert (config.name, config.backend) == ("ctr", "onnxruntime")
    assert config.HasField("dynamic_batching")
    inputs = {
        each.name: (
            model_config_pb2.DataType.Name(each.data_type),
            list(each.dims),
            each.HasField("reshape") and list(each.reshape.shape),
        )
        for each in config.input
    }
    single: tuple[str, list[int], list[int]] = ("TYPE_INT64", [1], [])
    assert inputs == dict.fromkeys(IDS, single) | {"genres": ("TYPE_INT64", [-1], False)}
    (output,) = config.output
    assert (output.name, list(output.dims), list(output.reshape.shape)) == ("probability", [1], [])
    assert output.data_type == model_config_pb2.TYPE_FP32

    session = onnxruntime.InferenceSession(package / BY_IDS / "1" / "model.onnx" / "model.onnx")
    given = {name: np.array(ids) for name, ids in IDS.items() if name != "genres"}
    genres = np.array([[2, 1, -1], [-1, 0, -1], [6, -1, -1]])
    (found,) = session.run(None, given | {"genres": genres})
    np.testing.assert_allclose(found, Scorer(bundle).score_ids(IDS), rtol=0, atol=TOLERANCE)
    # As Triton gives them, by name and with the shape of the configuration.
    assert {each.name: len(each.shape) for each in session.get_inputs()} == {
        name: 2 if name == "genres" else 1 for name in inputs
    }
    for wrong in (-2, 7):
        (found,) = session.run(None, given | {"genres": np.where(genres == 6, wrong, genres)})
        assert np.isnan(found).tolist() == [False, False, True]
    (nothing,) = session.run(None, given | {"genres": np.full((3, 1), -1)})
    nobody = IDS | {"genres": (np.empty(0, np.int64), np.zeros(4, np.int64))}
    np.testing.assert_allclose(nothing, Scorer(bundle).score_ids(nobody), rtol=0, atol=TOLERANCE)


def test_the_model_by_raw_records(bundle: Bundle, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(package, BY_RECORDS)
    assert (config.name, config.backend) == ("ctr_raw", "python")
    assert {each.name: tuple(each.dims) for each in config.input} == dict.fromkeys(RECORDS[0], (1,))
    assert {each.data_type for each in config.input} == {model_config_pb2.TYPE_STRING}
    assert [list(each.dims) for each in config.output] == [[1]]

    model = load_model(package / BY_RECORDS / "1", monkeypatch)
    expected = Scorer(bundle).score_ids(IDS)
    good, more = request(RECORDS[:2]), request(RECORDS[2:])
    unreadable, absent = request(RECORDS[:1], user=[b"\xff"]), request(RECORDS[:1], user=None)
    first, second, third, last = model.execute([good, unreadable, absent, more])
    found = [response.output_tensors[0].as_numpy() for response in (first, last)]
    assert [part.shape for part in found] == [(2, 1), (1, 1)]
    assert np.concatenate(found).dtype == np.float32
    np.testing.assert_allclose(np.concatenate(found)[:, 0], expected, rtol=0, atol=TOLERANCE)
    assert "the input user has text that is not UTF-8: " in second.error.message()
    assert "user is absent" in third.error.message()
    assert not second.output_tensors
    assert model.execute([absent])[0].error is not None


def test_a_bundle_without_vocabulary_takes_ids_in_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(live_model("dcnv2"), tmp_path / "bundle")
    models = tmp_path / "models"
    (tmp_path / "bundle" / "notes.txt").touch()  # no file of the bundle, so it is not copied
    write_package(tmp_path / "bundle", "triton", models)
    config = config_of(models, BY_RECORDS)
    assert {each.name: list(each.dims) for each in config.input} == {"user": [1], "genres": [-1], "age": [1]}
    assert {each.data_type for each in config.input} == {model_config_pb2.TYPE_INT64}
    copied = models / BY_RECORDS / "1" / "bundle"
    assert sorted(path.name for path in copied.iterdir()) == ["dense.safetensors", "manifest.json", "tables"]
    model = load_model(models / BY_RECORDS / "1", monkeypatch)
    genres = Tensor("genres", np.array([[2, 1, -1], [-1, 0, -1], [-1, -1, -1]]))
    singles = [Tensor(name, np.array(IDS[name]).reshape(-1, 1)) for name in ("user", "age")]
    (response,) = model.execute([InferenceRequest([genres, *singles])])
    expected = Scorer(tmp_path / "bundle").score_ids(IDS | {"genres": [[2, 1], [0], []]})
    np.testing.assert_allclose(response.output_tensors[0].as_numpy()[:, 0], expected, rtol=0, atol=TOLERANCE)
    wrong = InferenceRequest([genres, singles[1], Tensor("user", np.array([[3], [0], [11]]))])
    assert "user = 11; its ids go from 0 to 10" in model.execute([wrong])[0].error.message()
