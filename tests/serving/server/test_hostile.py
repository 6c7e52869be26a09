"""Hundreds of broken requests: each gets an answer of 200 or 4xx, and the server answers the next one."""

import json
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.asgi import Client, ask
from tests.support.raw_bundle import RECIPE, write_raw_bundle

RECORD = {"user": "u3", "genres": ["g2", "g1"], "age": "a1", "gone": "g1"}
IDS = {"user": [3, 0], "genres": [[2, 1], [4]], "age": [1, 0]}
TENSORS = {"user": [3, 0], "genres.values": [2, 1, 4], "genres.offsets": [0, 2, 3], "age": [1, 0]}
INFER = "/v2/models/films/infer"
VALID: list[tuple[str, Any]] = [
    ("/score", {"records": [RECORD, RECORD]}),
    ("/score", {"ids": IDS}),
    ("/rank", {"context": {"user": "u1"}, "candidates": [{"genres": "g1", "age": None, "gone": 3}]}),
    (
        INFER,
        {
            "id": "1",
            "inputs": [
                {"name": name, "datatype": "INT64", "shape": [len(data)], "data": data}
                for name, data in TENSORS.items()
            ],
            "outputs": [{"name": "probability", "parameters": {"binary_data": False}}],
        },
    ),
    (INFER, {"inputs": [{"name": "user", "datatype": "BYTES", "shape": [1, 1], "data": [["u1"]]}]}),
]
VALUES: list[Any] = [
    None, True, -1, 0, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400, 1.5, 1e308, -0.0, "", "\0",
    "u1" * 5000, "\u202e", [], [[]], [None], [[[[]]]], {}, {"": {}}, {"a": [{"b": None}]}, [1, "2"],
    [[1], [2, [3]]], ["u1"] * 100, [0] * 100, [2**62] * 3,
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: the list or object, and the index or key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places(value[key]))]


def with_other_values(draw: random.Random, valid: Any) -> bytes:
    """A request of which some values are others, or gone."""
    changed = json.loads(json.dumps(valid))
    for _ in range(draw.randint(1, 3)):
        if found := places(changed):
            holder, key = draw.choice(found)
            if draw.random() < 0.2:
                del holder[key]
            else:
                holder[key] = deepcopy(draw.choice(VALUES))
    return json.dumps(changed).encode()


def with_other_bytes(draw: random.Random, valid: Any) -> bytes:
    """A request of which some bytes are others, gone or doubled."""
    text = bytearray(json.dumps(valid).encode())
    for _ in range(draw.randint(1, 5)):
        place = draw.randrange(len(text))
        text[place : place + draw.randint(0, 3)] = draw.choice([b"", draw.randbytes(2), b"[" * 50, text[:20]])
    return bytes(text)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw_bundle(tmp_path_factory.mktemp("bundle"), RECIPE)


@pytest.mark.parametrize("broken", [with_other_values, with_other_bytes])
def test_broken_json(path: Path, broken: Callable[[random.Random, Any], bytes]) -> None:
    async def questions(client: Client) -> None:
        seen = set()
        for number in range(300):
            where, valid = VALID[number % len(VALID)]
            body = broken(random.Random(number), valid)
            answer = await client.post(where, body)
            assert answer.status in (200, 400, 413), f"{number}: {where} {body[:300]!r} {answer.body!r}"
            assert answer.status == 200 or answer.error
            seen.add(answer.status)
        assert seen >= {200, 400}
        assert (await client.post(*VALID[1])).status == 200

    ask(path, questions)


def test_broken_binary_tensors(path: Path) -> None:
    async def questions(client: Client) -> None:
        parts = {name: np.array(data, "<i8").tobytes() for name, data in TENSORS.items()}
        inputs = [
            {
                "name": name,
                "datatype": "INT64",
                "shape": [len(data)],
                "parameters": {"binary_data_size": len(parts[name])},
            }
            for name, data in TENSORS.items()
        ]
        for number in range(200):
            draw = random.Random(number)
            head = (
                with_other_values(draw, {"inputs": inputs})
                if number % 2
                else json.dumps({"inputs": inputs}).encode()
            )
            rest = bytearray(b"".join(parts.values()))
            for _ in range(draw.randint(0, 3)):
                place = draw.randrange(len(rest))
                rest[place : place + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 3))
            length = str(len(head) + draw.choice([0, 0, 0, 0, -1, 1, 10**6]))
            answer = await client.post(INFER, head + bytes(rest), {"Inference-Header-Content-Length": length})
            assert answer.status in (200, 400, 413), f"{number}: {head!r} {rest!r} {answer.body!r}"

    ask(path, questions)
