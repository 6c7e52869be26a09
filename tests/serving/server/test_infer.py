"""The Open Inference Protocol over HTTP: JSON, binary tensors, and an unmodified client."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ham_dist.serving import Scorer
from tests.support.asgi import Client, ask
from tests.support.http_server import served
from tests.support.raw_bundle import RECIPE, write_raw_bundle

COLUMNS: dict[str, list[str]] = {
    "user": ["u3", "", "u9"],
    "genres": ["g2|g1", "g4|nothing", ""],
    "age": ["a1", "", "a2"],
    "gone": ["g1", "x", "g1"],
}
IDS: dict[str, Any] = {
    "user": [3, 0, 9],
    "genres.values": [2, 1, 4, 0, 0],
    "genres.offsets": [0, 2, 4, 5],
    "age": [1, 0, 2],
    "gone": [1, 0, 1],
}
INFER = "/v2/models/films/infer"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw_bundle(tmp_path_factory.mktemp("bundle"), RECIPE)


@pytest.fixture(scope="module")
def expected(path: Path) -> list[float]:
    records = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
    found: list[float] = Scorer(path).score(records).tolist()
    return found


def tensor(name: str, datatype: Any, data: list[Any], **changes: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data, **changes}


def ids(**changes: Any) -> list[dict[str, Any]]:
    return [tensor(name, "INT64", data) for name, data in (IDS | changes).items()]


def raw(**changes: Any) -> list[dict[str, Any]]:
    return [tensor(name, "BYTES", data) for name, data in (COLUMNS | changes).items()]


def binary(tensors: list[dict[str, Any]], **more: Any) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with all tensors as bytes."""
    parts, inputs = [], []
    for one in tensors:
        if one["datatype"] == "BYTES":
            part = b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in one["data"])
        else:
            part = np.array(one["data"], "<i8").tobytes()
        parts.append(part)
        head = {key: value for key, value in one.items() if key != "data"}
        inputs.append(head | {"parameters": {"binary_data_size": len(part)}})
    text = json.dumps({"inputs": inputs, **more}).encode()
    return text + b"".join(parts), {"Inference-Header-Content-Length": str(len(text))}


def test_ids_and_raw_values_get_the_probabilities_of_the_scorer(path: Path, expected: list[float]) -> None:
    nested = tensor("user", "INT64", [[3], [0], [9]], shape=[3, 1])

    async def questions(client: Client) -> None:
        for inputs in (ids(), raw(), [nested, *ids()[1:]], [*raw(), tensor("more", "FP32", [1.5])]):
            answer = await client.post(INFER, {"inputs": inputs, "id": "7"})
            assert answer.status == 200, answer.body
            found = answer.json()
            (output,) = found.pop("outputs")
            assert found == {"model_name": "films", "model_version": "1", "id": "7"}
            assert output.pop("data") == pytest.approx(expected, abs=1e-6)
            assert output == {"name": "probability", "datatype": "FP32", "shape": [3]}

    ask(path, questions)


def test_binary_tensors(path: Path, expected: list[float]) -> None:
    async def questions(client: Client) -> None:
        for inputs in (ids(), raw()):
            for wish in (
                {"parameters": {"binary_data_output": True}},
                {"outputs": [{"name": "probability", "parameters": {"binary_data": True}}]},
            ):
                answer = await client.post(INFER, *binary(inputs, **wish))
                assert answer.status == 200, answer.body
                length = int(answer.headers["inference-header-content-length"])
                (output,) = json.loads(answer.body[:length])["outputs"]
                assert output["parameters"] == {"binary_data_size": 12}
                found = np.frombuffer(answer.body[length:], "<f4")
                assert found.tolist() == pytest.approx(expected, abs=1e-6)

    ask(path, questions)


def test_what_the_protocol_says_about_server_and_model(path: Path) -> None:
    async def questions(client: Client) -> None:
        server = (await client.get("/v2")).json()
        assert (server["name"], server["extensions"]) == ("ham_dist", ["binary_tensor_data"])
        for live in ("/v2/health/live", "/health/live", "/v2/health/ready", "/health/ready"):
            assert (await client.get(live)).status == 200
        for of_model in ("/v2/models/films", "/v2/models/films/versions/1"):
            model = (await client.get(of_model)).json()
            assert (model["name"], model["versions"]) == ("films", ["1"])
            names = [each["name"] for each in model["inputs"]]
            assert names == ["user", "age", "genres.values", "genres.offsets"]
            assert {each["datatype"] for each in model["inputs"]} == {"INT64"}
            assert model["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": [-1]}]
            assert (await client.get(f"{of_model}/ready")).json()["ready"] is True
            assert (await client.post(f"{of_model}/infer", {"inputs": ids()})).status == 200
        for other in ("/v2/models/other", "/v2/models/films/versions/2", "/v2/models/films/versions/2/ready"):
            answer = await client.get(other)
            assert (answer.status, "is not served; expected" in answer.error) == (404, True)

    ask(path, questions)


BYTES, HEADERS = binary(ids())
LENGTH = "Inference-Header-Content-Length"


def nested(request: dict[str, Any]) -> bytes:
    """A request with a list in place of NESTED that is 1000 deep, which Python itself cannot print."""
    return json.dumps(request).replace(f'"{NESTED}"', "[" * 1000 + "]" * 1000).encode()


NESTED = "NESTED"
WRONG: list[tuple[Any, str]] = [
    ({}, "has no list `inputs`"),
    ([], "has no list `inputs`"),
    ({"inputs": {}}, "has no list `inputs`"),
    ({"inputs": [3]}, "an element is not an object"),
    ({"inputs": [{}]}, "a tensor has no name"),
    ({"inputs": []}, "the field user is absent"),
    ({"inputs": ids()[1:]}, "the field user is absent"),
    ({"inputs": ids() * 2}, "two tensors have the same name"),
    ({"inputs": [tensor("user", "BOOL", [True])]}, "has datatype 'BOOL'; expected one of"),
    ({"inputs": [tensor("user", {"a": 1}, [True])]}, "has datatype 'an object'"),
    (nested({"inputs": [tensor("user", NESTED, [1])]}), "has datatype 'a nested list'"),
    (nested({"inputs": [tensor("user", "INT64", [1], shape=NESTED)]}), "has shape a nested list"),
    (
        nested({"inputs": [tensor("user", "INT64", [1], parameters={"binary_data_size": NESTED})]}),
        "has binary_data_size a nested list",
    ),
    (
        nested({"inputs": ids(), "parameters": {"values": NESTED}}),
        "values = 'a nested list'",
    ),
    (nested({"inputs": ids(), "outputs": [{"name": NESTED}]}), "'a nested list' is no output"),
    ({"inputs": [tensor("user", "INT64", [3, 0], shape=[3])]}, "has 2 values; its shape has 3"),
    ({"inputs": [tensor("user", "INT64", [3, 0], shape=[2, 2])]}, "has shape [2, 2]; expected [n]"),
    ({"inputs": [tensor("user", "INT64", [], shape=[-1])]}, "has shape [-1]; expected [n]"),
    ({"inputs": [tensor("user", "INT64", [], shape=[True])]}, "has shape [True]; expected [n]"),
    ({"inputs": [tensor("user", "INT64", [], shape=2)]}, "has shape 2; expected [n]"),
    ({"inputs": [tensor("user", "INT64", [3]) | {"data": "3"}]}, "has no list `data`"),
    ({"inputs": [tensor("user", "INT64", [1.0])]}, "expected numbers of type INT64"),
    ({"inputs": [tensor("user", "INT64", [True])]}, "expected numbers of type INT64"),
    ({"inputs": [tensor("user", "INT8", [300])]}, "has a number outside of INT8"),
    ({"inputs": [tensor("user", "INT64", [2**63])]}, "has a number outside of INT64"),
    ({"inputs": [tensor("user", "BYTES", [3])]}, "has a value that is not text"),
    ({"inputs": ids(user=[3, -1, 0])}, "user = -1; its ids go from 0 to 10"),
    ({"inputs": ids(user=[3, 0])}, "expected as many"),
    ({"inputs": ids(**{"genres.offsets": [0, 2, 4, 6]})}, "the offsets of genres do not fit"),
    ({"inputs": ids(**{"genres.offsets": [0, 2, 4, -5]})}, "the offsets of genres do not fit"),
    (
        {"inputs": [one for one in ids() if one["name"] != "genres.offsets"]},
        "genres.offsets one is absent",
    ),
    ({"inputs": ids(), "parameters": {"values": "raw"}}, "column"),
    ({"inputs": raw(), "parameters": {"values": "ids"}}, "expected"),
    ({"inputs": raw(), "parameters": {"values": 3}}, "values = '3'; expected 'ids'"),
    ({"inputs": raw(), "parameters": []}, "`parameters` is not an object"),
    ({"inputs": raw(user=["u1"])}, "expected as many"),
    ({"inputs": raw()[1:]}, "user"),
    ({"inputs": [tensor("user", "FP32", [1.5] * 3), *raw()[1:]]}, "user"),
    ({"inputs": ids(), "id": 7}, "`id` is not text"),
    ({"inputs": ids(), "outputs": 7}, "`outputs` is not a list"),
    ({"inputs": ids(), "outputs": [{"name": "logit"}]}, "'logit' is no output"),
    ({"inputs": ids(), "parameters": {"binary_data_output": 1}}, "binary_data is not true or false"),
    ((BYTES[:-1], HEADERS), "has binary_data_size 24; 23 bytes"),
    ((BYTES + b"x", HEADERS), "has 1 bytes after its last tensor"),
    ((BYTES, {LENGTH: "-3"}), "expected a number up to"),
    ((BYTES, {LENGTH: "9" * 9}), "expected a number up to"),
    ((BYTES, {LENGTH: "10"}), "is not JSON"),
    ((BYTES, {}), "is not JSON"),
]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x01\0\0\0u", "after its"),
        (b"\xff\xff\xff\xff", "ends within value 0"),
        (b"\x01\0", "ends within value 0"),
        (b"", "ends within value 0"),
        (b"\x01\0\0\0\xff" * 3, "value 0 (from 0) is not UTF-8"),
    ],
)
def test_wrong_bytes_are_refused(path: Path, data: bytes, message: str) -> None:
    size = {"binary_data_size": len(data)}
    shape = [0] if message == "after its" else [3]
    one = {"name": "user", "datatype": "BYTES", "shape": shape, "parameters": size}

    async def questions(client: Client) -> None:
        head = json.dumps({"inputs": [one]}).encode()
        answer = await client.post(INFER, head + data, {LENGTH: str(len(head))})
        assert (answer.status, message in answer.error) == (400, True), answer.body

    ask(path, questions)


def test_wrong_requests_get_a_clear_answer(path: Path) -> None:
    async def questions(client: Client) -> None:
        for request, message in WRONG:
            body, headers = request if isinstance(request, tuple) else (request, None)
            answer = await client.post(INFER, body, headers)
            assert (answer.status, message in answer.error) == (400, True), f"{request} {answer.body!r}"
        assert (await client.post(INFER, {"inputs": ids()})).status == 200
        many = tensor("user", "BYTES", [], shape=[10**12], parameters={"binary_data_size": 0})
        del many["data"]
        refused = await client.post(INFER, {"inputs": [many]})
        assert (refused.status, "expected at most 4,096" in refused.error) == (413, True)

    ask(path, questions)


def test_the_client_of_triton_gets_the_same_answers(path: Path, expected: list[float]) -> None:
    http = pytest.importorskip("tritonclient.http", reason="`make` installs tritonclient for tests")
    utils = pytest.importorskip("tritonclient.utils")
    with served(path) as address:
        client = http.InferenceServerClient(address)
        try:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("films")
            assert client.is_model_ready("films", "1")
            assert client.get_server_metadata()["name"] == "ham_dist"
            assert client.get_model_metadata("films")["versions"] == ["1"]
            for inputs in (ids(), raw()):
                for in_bytes in (True, False):
                    asked = []
                    for one in inputs:
                        kind = np.object_ if one["datatype"] == "BYTES" else np.int64
                        sent = http.InferInput(one["name"], one["shape"], one["datatype"])
                        asked.append(sent.set_data_from_numpy(np.array(one["data"], kind), in_bytes))
                    wish = [http.InferRequestedOutput("probability", binary_data=in_bytes)]
                    for outputs in (wish, None):
                        answer = client.infer("films", asked, outputs=outputs, request_id="7")
                        assert answer.as_numpy("probability").tolist() == pytest.approx(expected, abs=1e-6)
                        assert (answer.get_response()["model_version"], answer.get_response()["id"]) == (
                            "1",
                            "7",
                        )
            with pytest.raises(utils.InferenceServerException, match="is not served"):
                client.infer("other", asked)
        finally:
            client.close()
