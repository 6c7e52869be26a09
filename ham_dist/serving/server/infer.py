"""`POST /v2/models/NAME/infer`: the Open Inference Protocol in JSON, with the binary tensor extension.

With the header Inference-Header-Content-Length, the body is that many bytes of JSON, and then the bytes of
the tensors that have `binary_data_size`, in their order.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from ham_dist.serving.server.batcher import Scored
from ham_dist.serving.server.model import ServedModel, Values
from ham_dist.serving.server.refusal import Refused, shown
from ham_dist.serving.server.score import parse_json
from ham_dist.serving.server.tensors import (
    OUTPUT,
    Tensor,
    check_head,
    from_bytes,
    from_list,
    require_output,
    values_of,
)

HEADER = "inference-header-content-length"


class InferRequest(NamedTuple):
    """A request.

    Attributes:
        values: Its records.
        id: Returned with the answer; None if the request has none.
        binary: Answer with a binary tensor.
    """

    values: Values
    id: str | None
    binary: bool


def parse_infer(
    body: bytes, headers: Mapping[bytes, bytes], model: ServedModel, max_rows: int
) -> InferRequest:
    """Returns the request in a body.

    Raises:
        Refused: It is not valid.
    """
    length = len(body)
    if (given := headers.get(HEADER.encode())) is not None:
        if not given.isdigit() or len(given) > 12 or int(given) > length:
            raise Refused(
                400,
                f"{HEADER}: is {given[:20].decode('latin-1')}; expected a number up to the "
                f"{length:,} bytes of the body",
            )
        length = int(given)
    value = parse_json(memoryview(body)[:length], "body")
    if not isinstance(value, dict) or not isinstance(value.get("inputs"), list):
        raise Refused(400, 'body: has no list `inputs`; expected {"inputs": [{"name": ...}, ...]}')
    rest = memoryview(body)[length:]
    tensors = []
    for item in value["inputs"]:
        tensor, size = _tensor(item, rest, max_rows)
        tensors.append(tensor)
        rest = rest[size:]
    if len(rest):
        raise Refused(400, f"body: has {len(rest):,} bytes after its last tensor; expected none")
    parameters = _object(value, "parameters", "body")
    id = value.get("id")
    if not isinstance(id, str | None):
        raise Refused(400, "body: `id` is not text; expected text")
    values = values_of(tensors, model, parameters.get("values", "auto"))
    return InferRequest(values, id, _binary(value, parameters))


def _tensor(item: Any, rest: memoryview, max_rows: int) -> tuple[Tensor, int]:
    """A tensor, and the number of its bytes in `rest`."""
    if not isinstance(item, dict):
        raise Refused(400, "inputs: an element is not an object; expected name, datatype, shape and data")
    name, datatype = item.get("name"), item.get("datatype")
    count = check_head(name, datatype, item.get("shape"))
    assert isinstance(name, str) and isinstance(datatype, str), "they were checked"  # noqa: PT018
    where = f"input {name[:80]!r}"
    parameters = _object(item, "parameters", where)
    size = parameters.get("binary_data_size")
    if size is None:
        return from_list(name, datatype, count, item.get("data")), 0
    if type(size) is not int or not 0 <= size <= len(rest):
        raise Refused(
            400, f"{where}: has binary_data_size {shown(size)}; {len(rest):,} bytes of the body are left"
        )
    if "data" in item:
        raise Refused(400, f"{where}: has both `data` and `binary_data_size`; expected one of them")
    return from_bytes(name, datatype, count, rest[:size], max_rows), size


def _object(value: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    found = value.get(key, {})
    if not isinstance(found, dict):
        raise Refused(400, f"{where}: `{key}` is not an object; expected one, or none")
    return found


def _binary(value: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """True if the answer is a binary tensor: an output's own wish comes before that of the request."""
    binary = parameters.get("binary_data_output", False)
    outputs = value.get("outputs", [])
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise Refused(400, "body: `outputs` is not a list of objects; expected one, or none")
    require_output([output.get("name") for output in outputs])
    for output in outputs:
        binary = _object(output, "parameters", "outputs").get("binary_data", binary)
    if not isinstance(binary, bool):
        raise Refused(400, "outputs: binary_data is not true or false; expected one of them")
    return binary


def answer_of(scored: Scored, request: InferRequest, model: str) -> tuple[bytes, dict[str, str]]:
    """Returns the body of the answer, and its headers."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": [len(scored.probabilities)]}
    answer: dict[str, Any] = {"model_name": model, "model_version": scored.version, "outputs": [output]}
    if request.id is not None:
        answer["id"] = request.id
    if not request.binary:
        output["data"] = scored.probabilities
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), {"content-type": "application/json"}
    data = scored.probabilities.astype("<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(data)}
    head = orjson.dumps(answer)
    return head + data, {"content-type": "application/octet-stream", HEADER: str(len(head))}
