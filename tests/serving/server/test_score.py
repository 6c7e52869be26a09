"""POST /score: records and ids as JSON, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from ham_dist.serving import Scorer
from tests.support.asgi import Client, ask
from tests.support.live_models import export, live_model
from tests.support.raw_bundle import IDS, RECIPE, RECORDS, write_raw_bundle


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw_bundle(tmp_path_factory.mktemp("bundle"), RECIPE)


def test_records_and_ids_get_the_probabilities_of_the_scorer(path: Path) -> None:
    async def questions(client: Client) -> list[Any]:
        asked: list[Any] = [{"records": RECORDS}, {"ids": IDS}, {"records": RECORDS[1:2]}, {"records": []}]
        return [await client.post("/score", body) for body in asked]

    expected = Scorer(path).score(RECORDS)
    by_record, by_id, one, none = ask(path, questions)
    assert {each.status for each in (by_record, by_id, one, none)} == {200}
    for answer in (by_record, by_id):
        found = answer.json()
        assert found.keys() == {"model", "version", "probabilities"}
        assert (found["model"], found["version"]) == ("films", "1")
        assert found["probabilities"] == pytest.approx(expected.tolist(), abs=1e-7)
        assert answer.headers["x-model-version"] == "1"
        assert answer.headers["server-timing"].startswith("queue;dur=")
    assert one.json()["probabilities"] == pytest.approx([expected[1].item()], abs=1e-6)
    assert none.json()["probabilities"] == []


DEEP = b'{"records": [{"user": ' + b"[" * 1000 + b"]" * 1000 + b', "genres": "", "age": "", "gone": ""}]}'
WRONG: list[tuple[Any, int, str]] = [
    (b"", 400, "body: is not JSON"),
    (b"{", 400, "body: is not JSON"),
    (b"\xff\xfe", 400, "body: is not JSON"),
    (b"\x80\x04K\x01.", 400, "body: is not JSON"),
    (b"[" * 100_000, 400, "body: is not JSON"),
    (b"[" * 1500 + b"]" * 1500, 400, "depth limit"),
    (b'{"records": [{"user": NaN}]}', 400, "body: is not JSON"),
    (b'{"ids": {"user": [1e999]}}', 400, "body: is not JSON"),
    (b'{"ids": {"user": [' + b"9" * 400 + b"]}}", 400, "body: is not JSON"),
    (DEEP, 400, "column user is list that is nested too deeply"),
    (b"[]", 400, "body: is a list; expected"),
    (b"3", 400, "body: is a number; expected"),
    (b"null", 400, "body: is null; expected"),
    ({}, 400, "has the keys none; expected"),
    ({"record": []}, 400, "has the keys 'record'; expected"),
    ({"records": [], "ids": {}}, 400, "has the keys 'records', 'ids'; expected"),
    ({"records": {}}, 400, "`records` is an object; expected"),
    ({"records": None}, 400, "`records` is null; expected"),
    ({"ids": []}, 400, "`ids` is a list; expected"),
    ({"records": ["u1"]}, 400, "record 0 (from 0): is string; expected a dict"),
    ({"records": [[]]}, 400, "record 0 (from 0): is "),
    ({"records": [RECORDS[0], {"user": "u1"}]}, 400, "genres"),
    ({"records": [RECORDS[0] | {"user": 1.5}]}, 400, "user"),
    ({"records": [RECORDS[0] | {"user": True}]}, 400, "user"),
    ({"records": [RECORDS[0] | {"user": {"a": 1}}]}, 400, "user"),
    ({"records": [RECORDS[0] | {"user": {"a": [{"b": ["c"]}]}}]}, 400, "user"),
    ({"records": [RECORDS[0] | {"age": 10**25}]}, 400, "age"),
    ({"ids": {}}, 400, "ids: the field user is absent"),
    ({"ids": IDS | {"user": [3, -1, 0]}}, 400, "record 1 (from 0): user = -1; its ids go from 0 to 10"),
    ({"ids": IDS | {"user": [3, 2**62, 0]}}, 400, "its ids go from 0 to 10"),
    ({"ids": IDS | {"user": [3, 2**64, 0]}}, 400, "expected integers"),
    ({"ids": IDS | {"user": [3, "1", 0]}}, 400, "expected integers"),
    ({"ids": IDS | {"user": [3, None, 0]}}, 400, "expected integers"),
    ({"ids": IDS | {"user": [3, {}, 0]}}, 400, "expected integers"),
    ({"ids": IDS | {"user": 3}}, 400, "expected integers"),
    ({"ids": IDS | {"user": [[[1]]]}}, 400, "expected integers"),
    ({"ids": IDS | {"user": [3]}}, 400, "expected as many"),
    ({"ids": IDS | {"genres": [2, 1, 0]}}, 400, "genres is multi-valued"),
    ({"ids": IDS | {"genres": [[2], [99], [0]]}}, 400, "genres = 99"),
    ({"records": RECORDS * 3}, 413, "has 9 records; expected at most 8"),
    ({"ids": {name: ids * 3 for name, ids in IDS.items()}}, 413, "has 9 records; expected at most 8"),
    ({"ids": IDS | {"genres": [["unread"]] * 9}}, 413, "has 9 records; expected at most 8"),
    (b" " * 200_001, 413, "body: has 200,001 bytes or more; expected at most 200,000"),
    (b" " * 2_000_000, 413, "expected at most 200,000"),
]


def test_wrong_requests_get_a_clear_answer_and_the_next_one_is_served(path: Path) -> None:
    async def questions(client: Client) -> None:
        for body, status, message in WRONG:
            answer = await client.post("/score", body)
            shown = (body if isinstance(body, bytes) else json.dumps(body).encode())[:60]
            assert (answer.status, message in answer.error) == (status, True), f"{shown!r}: {answer.body!r}"
            assert answer.headers["content-type"] == "application/json"
        assert (await client.post("/score", {"ids": IDS})).status == 200
        metrics = (await client.get("/metrics")).body.decode()
        refused = sum(status == 400 for _, status, _ in WRONG)
        assert f'ham_dist_requests_total{{protocol="score",status="400"}} {float(refused)}' in metrics

    ask(path, questions, max_rows=8, queue_rows=8, max_body_bytes=200_000)


def test_messages_are_short(path: Path) -> None:
    async def questions(client: Client) -> None:
        wide = {"x" * 100 + str(number): 1 for number in range(1000)}
        answer = await client.post("/score", {"records": [RECORDS[0] | {"user": wide}]})
        assert answer.status == 400
        assert len(answer.error) < 2100

    ask(path, questions)


def test_a_body_that_never_ends_is_refused(path: Path) -> None:
    async def questions(client: Client) -> None:
        for pieces in ((b'{"ids":',), (b"",)):
            answer = await client.ask("POST", "/score", pieces, ends=False)
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert "expected all of it" in answer.error

    ask(path, questions, read_seconds=0.1)


def test_a_body_in_pieces_is_put_together(path: Path) -> None:
    async def questions(client: Client) -> None:
        whole = json.dumps({"ids": IDS}).encode()
        answer = await client.post("/score", (whole[:5], b"", whole[5:9], whole[9:]))
        assert answer.status == 200

    ask(path, questions)


def test_large_requests_are_scored_on_another_thread(path: Path) -> None:
    async def questions(client: Client) -> None:
        records = [RECORDS[number % 3] for number in range(3000)]
        large = await client.post("/score", {"records": records})
        assert len(json.dumps(records)) > 1 << 16
        small = await client.post("/score", {"records": RECORDS})
        assert large.json()["probabilities"] == pytest.approx(small.json()["probabilities"] * 1000, abs=1e-6)

    ask(path, questions)


def test_compressed_bodies_and_other_methods_and_paths_are_refused(path: Path) -> None:
    async def questions(client: Client) -> None:
        zipped = await client.post("/score", b"", {"Content-Encoding": "gzip"})
        assert (zipped.status, "gzip: expected none" in zipped.error) == (415, True)
        got = await client.get("/score")
        assert (got.status, got.headers["allow"]) == (405, "POST")
        assert (await client.post("/metrics", b"")).status == 405
        for missing in ("/scores", "/v2/models", "/v2/models/films/other", "/../etc/passwd", ""):
            assert (await client.get(missing)).status == 404

    ask(path, questions)


def test_a_bundle_without_vocabulary_takes_ids_alone(tmp_path: Path) -> None:
    export(live_model("dcnv2"), tmp_path / "bundle")
    several = {name: IDS[name] for name in ("user", "genres", "age")}

    async def questions(client: Client) -> None:
        assert (await client.post("/score", {"ids": several})).status == 200
        refused = await client.post("/score", {"records": RECORDS})
        assert (refused.status, "has no vocabulary" in refused.error) == (400, True)

    ask(tmp_path / "bundle", questions)


def test_candidates_of_one_context_get_the_probabilities_of_their_records(path: Path) -> None:
    context: dict[str, Any] = {"user": "u3", "age": "a1"}
    candidates: list[dict[str, Any]] = [{"genres": "g2|g1", "gone": "g1"}, {"genres": ["g4"], "gone": "x"}]

    async def questions(client: Client) -> None:
        ranked = await client.post("/rank", {"context": context, "candidates": candidates})
        assert ranked.status == 200, ranked.body
        expected = Scorer(path).score([context | candidate for candidate in candidates])
        assert ranked.json()["probabilities"] == pytest.approx(expected.tolist(), abs=1e-6)
        none = await client.post("/rank", {"context": context, "candidates": []})
        assert none.json()["probabilities"] == []
        for body, status, message in (
            ({"context": context}, 400, "has the keys 'context'; expected"),
            ({"records": []}, 400, "has the keys 'records'; expected"),
            ([], 400, "body: is a list; expected"),
            ({"context": [], "candidates": []}, 400, "`context` is a list; expected"),
            ({"context": {}, "candidates": {}}, 400, "`candidates` is an object; expected"),
            ({"context": {}, "candidates": candidates}, 400, "user"),
            ({"context": context, "candidates": [3]}, 400, "is int64; expected a dict"),
            ({"context": context, "candidates": [context]}, 400, "user"),
            ({"context": context, "candidates": candidates * 3}, 413, "has 6 records; expected at most 4"),
        ):
            answer = await client.post("/rank", body)
            assert (answer.status, message in answer.error) == (status, True), f"{body} {answer.body!r}"

    ask(path, questions, max_rows=4, queue_rows=4)
