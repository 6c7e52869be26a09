"""`POST /score` and `POST /rank`: plain JSON in and out.

{"records": [{"user": "u1", "genres": ["g1", "g2"]}, ...]}      raw records
{"ids": {"user": [1, 7], "genres": [[1, 2], [0]]}}              or prepared ids by field
    {"context": {"user": "u1"}, "candidates": [{"item": 3}, ...]}   one context and many candidates, to /rank
"""

from typing import Any

import orjson

from ham_dist.serving.server.batcher import Scored
from ham_dist.serving.server.model import Values
from ham_dist.serving.server.refusal import Refused

SCORE = 'expected {"records": [{...}, ...]} with raw values, or {"ids": {"FIELD": [...], ...}}'
RANK = 'expected {"context": {...}, "candidates": [{...}, ...]} with raw values'


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
    return _score_values(_object(body, where, SCORE), where)


def candidates_of(body: bytes, where: str = "body") -> Values:
    """Returns the context and the candidates of a request to `/rank`; arguments and errors as above."""
    return _rank_values(_object(body, where, RANK), where)


def recorded_of(line: bytes, where: str) -> Values:
    """Returns a recorded request to either; arguments and errors as above."""
    value = _object(line, where, SCORE)
    return _rank_values(value, where) if "context" in value else _score_values(value, where)


def _object(body: bytes, where: str, expected: str) -> dict[str, Any]:
    value = parse_json(body, where)
    if not isinstance(value, dict):
        raise Refused(400, f"{where}: is {_kind(value)}; {expected}")
    return value


def _score_values(value: dict[str, Any], where: str) -> Values:
    if len(value) != 1 or not value.keys() <= {"records", "ids"}:
        raise Refused(400, f"{where}: has the keys {_keys(value)}; {SCORE}")
    records, ids = value.get("records"), value.get("ids")
    if "records" in value:
        if not isinstance(records, list):
            raise Refused(400, f"{where}: `records` is {_kind(records)}; {SCORE}")
        return Values(records=records)
    if not isinstance(ids, dict):
        raise Refused(400, f"{where}: `ids` is {_kind(ids)}; {SCORE}")
    return Values(ids=ids)


def _rank_values(value: dict[str, Any], where: str) -> Values:
    if value.keys() != {"context", "candidates"}:
        raise Refused(400, f"{where}: has the keys {_keys(value)}; {RANK}")
    context, candidates = value["context"], value["candidates"]
    if not isinstance(context, dict):
        raise Refused(400, f"{where}: `context` is {_kind(context)}; {RANK}")
    if not isinstance(candidates, list):
        raise Refused(400, f"{where}: `candidates` is {_kind(candidates)}; {RANK}")
    return Values(records=candidates, context=context)


def _keys(value: dict[str, Any]) -> str:
    return ", ".join(repr(key[:40]) for key in list(value)[:10]) or "none"


def answer_of(scored: Scored, model: str) -> bytes:
    """Returns the body of the answer: `{"model", "version", "probabilities"}`."""
    return orjson.dumps(
        {"model": model, "version": scored.version, "probabilities": scored.probabilities},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
