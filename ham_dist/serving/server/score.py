"""`POST /score`: plain JSON in and out.

{"records": [{"user": "u1", "genres": ["g1", "g2"]}, ...]}      raw records
{"ids": {"user": [1, 7], "genres": [[1, 2], [0]]}}              or prepared ids by field
"""

from typing import Any

import orjson

from ham_dist.serving.server.batcher import Scored
from ham_dist.serving.server.model import Values
from ham_dist.serving.server.refusal import Refused

EXPECTED = 'expected {"records": [{...}, ...]} with raw values, or {"ids": {"FIELD": [...], ...}}'


def parse_json(body: bytes | memoryview, where: str) -> Any:
    """Returns a JSON value.

    Raises:
        Refused: It is not JSON (which has no NaN or infinity), or nested more than 1024 deep.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"{where}: is not JSON: {error}\n  Send UTF-8 without NaN or infinity.") from None


def values_of(body: bytes, where: str = "body") -> Values:
    """Returns the records of a request to `/score`.

    Args:
        body: Body of the request.
        where: Its place, for messages.
    Raises:
        Refused: The body is not as the module's docstring shows.
    """
    value = parse_json(body, where)
    if not isinstance(value, dict):
        raise Refused(400, f"{where}: is {_kind(value)}; {EXPECTED}")
    if len(value) != 1 or not value.keys() <= {"records", "ids"}:
        keys = ", ".join(repr(key[:40]) for key in list(value)[:10]) or "none"
        raise Refused(400, f"{where}: has the keys {keys}; {EXPECTED}")
    records, ids = value.get("records"), value.get("ids")
    if "records" in value:
        if not isinstance(records, list):
            raise Refused(400, f"{where}: `records` is {_kind(records)}; {EXPECTED}")
        return Values(records=records)
    if not isinstance(ids, dict):
        raise Refused(400, f"{where}: `ids` is {_kind(ids)}; {EXPECTED}")
    return Values(ids=ids)


def answer_of(scored: Scored, model: str) -> bytes:
    """Returns the body of the answer: `{"model", "version", "probabilities"}`."""
    return orjson.dumps(
        {"model": model, "version": scored.version, "probabilities": scored.probabilities},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
