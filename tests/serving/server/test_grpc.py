"""The Open Inference Protocol over gRPC, asked by an unmodified client."""

import re
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ham_dist.serving import Scorer
from ham_dist.serving.server import grpc_messages
from tests.support.http_server import served_by_grpc
from tests.support.raw_bundle import RECIPE, write_raw_bundle

COLUMNS: dict[str, list[Any]] = {
    "user": ["u3", "", "u9"],
    "genres": ["g2|g1", "g4|nothing", ""],
    "age": ["a1", "", "a2"],
}
IDS: dict[str, list[Any]] = {
    "user": [3, 0, 9],
    "genres.values": [2, 1, 4, 0, 0],
    "genres.offsets": [0, 2, 4, 5],
    "age": [1, 0, 2],
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw_bundle(tmp_path_factory.mktemp("bundle"), RECIPE)


def test_the_client_of_triton_gets_the_answers_of_the_scorer(path: Path) -> None:
    client_of = pytest.importorskip("tritonclient.grpc", reason="`make` installs tritonclient for tests")
    utils = pytest.importorskip("tritonclient.utils")
    expected = Scorer(path).score(
        [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
    )

    def inputs(values: dict[str, list[Any]], kind: str, dtype: Any) -> list[Any]:
        return [
            client_of.InferInput(name, [len(data)], kind).set_data_from_numpy(np.array(data, dtype))
            for name, data in values.items()
        ]

    other = [client_of.InferRequestedOutput("logit")]
    with served_by_grpc(path) as address, client_of.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("films", "1")
        assert client.get_server_metadata().name == "ham_dist"
        metadata = client.get_model_metadata("films")
        assert (metadata.name, list(metadata.versions)) == ("films", ["1"])
        assert [each.name for each in metadata.inputs] == ["user", "age", "genres.values", "genres.offsets"]
        for asked in (inputs(COLUMNS, "BYTES", np.object_), inputs(IDS, "INT64", np.int64)):
            answer = client.infer("films", asked, request_id="7")
            np.testing.assert_allclose(answer.as_numpy("probability"), expected, rtol=0, atol=1e-6)
            assert (answer.get_response().model_version, answer.get_response().id) == ("1", "7")
        for arguments, message in (
            ({"model_name": "other", "inputs": asked}, "model 'other': is not served; expected 'films'"),
            ({"model_name": "films", "inputs": asked[1:]}, "ids: the field user is absent"),
            (
                {"model_name": "films", "inputs": asked, "outputs": other},
                "'logit' is no output",
            ),
        ):
            with pytest.raises(utils.InferenceServerException, match=re.escape(message)):
                client.infer(**arguments)


def test_contents_in_fields_of_the_message_and_wrong_requests(path: Path) -> None:
    request_of = grpc_messages.message("ModelInferRequest")
    expected = Scorer(path).score_ids({**IDS, "genres": (IDS["genres.values"], IDS["genres.offsets"])})

    def tensor(name: str, data: list[Any], datatype: str = "INT64", **more: Any) -> dict[str, Any]:
        field = {"INT64": "int64_contents", "INT32": "int_contents", "BYTES": "bytes_contents"}[datatype]
        return {"name": name, "datatype": datatype, "shape": [len(data)], "contents": {field: data}} | more

    good = [tensor(name, data) for name, data in IDS.items()]
    text = [tensor(name, [each.encode() for each in data], "BYTES") for name, data in COLUMNS.items()]
    many = [tensor(one["name"], one["contents"]["bytes_contents"] * 2, "BYTES") for one in text]
    raw = [np.array(data, "<i8").tobytes() for data in IDS.values()]
    with served_by_grpc(path, max_rows=4, queue_rows=4) as address, grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(
            f"/{grpc_messages.SERVICE}/ModelInfer",
            request_serializer=request_of.SerializeToString,
            response_deserializer=grpc_messages.message("ModelInferResponse").FromString,
        )
        for inputs in (good, text, [tensor("user", IDS["user"], "INT32"), *good[1:]]):
            answer = infer(request_of(model_name="films", inputs=inputs))
            (output,) = answer.outputs
            assert (output.name, output.datatype, list(output.shape)) == ("probability", "FP32", [3])
            np.testing.assert_allclose(output.contents.fp32_contents, expected, rtol=0, atol=1e-6)
        for changes, message in (
            ({"inputs": []}, "the field user is absent"),
            ({"inputs": [tensor("user", [3, 0, 99]), *good[1:]]}, "user = 99; its ids go from 0 to 10"),
            ({"inputs": [tensor("user", [3], shape=[7]), *good[1:]]}, "has 1 values; its shape has 7"),
            ({"inputs": [tensor("user", [3], shape=[-1]), *good[1:]]}, "has shape [-1]; expected [n]"),
            ({"inputs": [good[0] | {"datatype": "BOOL"}]}, "has datatype 'BOOL'"),
            ({"inputs": [tensor("user", [b"\xff"], "BYTES")]}, "is not UTF-8"),
            ({"inputs": good, "raw_input_contents": raw[1:]}, "raw_input_contents: has 3 tensors"),
            ({"inputs": good, "raw_input_contents": [raw[0][:-1], *raw[1:]]}, "has 23 bytes; expected 24"),
            ({"inputs": good, "model_version": "2"}, "version '2' of films: is not served"),
            ({"inputs": [tensor("user", [3] * 4), *good[1:]]}, "expected as many"),
            ({"inputs": many}, "has 6 records; expected at most 4"),
        ):
            with pytest.raises(grpc.RpcError, match=re.escape(message)):
                infer(request_of(**{"model_name": "films", **changes}))
        assert len(infer(request_of(model_name="films", inputs=good)).outputs) == 1
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_messages_are_those_of_the_protocol() -> None:
    """Numbers, names, types and labels of all fields, against the definition that Triton's client carries."""
    theirs = pytest.importorskip(
        "tritonclient.grpc.service_pb2", reason="`make` installs tritonclient for tests"
    )

    def fields(descriptor: Any) -> list[Any]:
        return [
            (
                field.number, field.name, field.type, field.is_repeated,
                field.containing_oneof.name if field.containing_oneof else None,
                fields(field.message_type) if field.message_type else None,
            )
            for field in descriptor.fields
        ]  # fmt: skip

    names = [name for name in grpc_messages._TABLE if "." not in name]
    assert len(names) > 10
    for name in names:
        ours = grpc_messages.message(name).DESCRIPTOR
        assert fields(ours) == fields(theirs.DESCRIPTOR.message_types_by_name[name]), name
