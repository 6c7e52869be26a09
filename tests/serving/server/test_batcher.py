"""Batches: who runs together, what is refused, and what a failure costs."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from ham_dist.serving.id_batch import IdBatch
from ham_dist.serving.server.batcher import Batcher, Scored
from ham_dist.serving.server.refusal import Refused


class Model:
    """A model whose probability of an id is the id, and whose batches wait until they are let go."""

    def __init__(self, version: str = "1") -> None:
        self.version = version
        self.ran: list[list[int]] = []
        self.running, self.free = threading.Semaphore(0), threading.Semaphore(0)

    def run(self, batch: IdBatch) -> np.ndarray[Any, Any]:
        ids = batch.singles[0]
        self.ran.append(ids.tolist())
        self.running.release()
        assert self.free.acquire(timeout=60)
        if (ids == 13).any():
            raise RuntimeError("unlucky")
        return ids.astype(np.float32)


def batch(*ids: int) -> IdBatch:
    return IdBatch(np.array([ids], np.int64), (), len(ids))


def run(question: Callable[[Batcher, list[int]], Awaitable[None]], **options: int) -> None:
    async def inside() -> None:
        observed: list[int] = []
        batcher = Batcher(
            observe=lambda rows, _: observed.append(rows),
            count=lambda *_: None,
            **{"max_rows": 8, "queue_rows": 100, "loop_rows": 0} | options,
        )
        try:
            await question(batcher, observed)
        finally:
            await batcher.close()

    asyncio.run(inside())


async def begun(model: Model) -> None:
    assert await asyncio.to_thread(model.running.acquire, timeout=60)


def lists(answers: list[Scored]) -> list[list[float]]:
    return [answer.probabilities.tolist() for answer in answers]


def test_what_waits_while_the_model_runs_is_the_next_batch() -> None:
    async def question(batcher: Batcher, observed: list[int]) -> None:
        model: Any = Model()
        first = batcher.submit(model, batch(1))
        await begun(model)
        others = [batcher.submit(model, batch(*ids)) for ids in ((2, 3), (4,), (5, 6, 7))]
        assert batcher.rows == 7
        model.free.release()
        assert (await first).probabilities.tolist() == [1.0]
        model.free.release()
        assert lists(await asyncio.gather(*others)) == [[2.0, 3.0], [4.0], [5.0, 6.0, 7.0]]
        assert model.ran == [[1], [2, 3, 4, 5, 6, 7]]
        assert (observed, batcher.rows) == ([1, 6], 0)

    run(question)


def test_a_request_is_never_split_and_batches_have_a_limit() -> None:
    async def question(batcher: Batcher, observed: list[int]) -> None:
        model: Any = Model()
        model.free.release(9)
        first = batcher.submit(model, batch(1))
        await first
        model.free, model.running = threading.Semaphore(0), threading.Semaphore(0)
        blocked = batcher.submit(model, batch(0))
        await begun(model)
        sizes = (3, 3, 3, 12, 1)
        waiting = [batcher.submit(model, batch(*range(size))) for size in sizes]
        model.free.release(9)
        found = await asyncio.gather(blocked, *waiting)
        assert [len(answer.probabilities) for answer in found] == [1, *sizes]
        assert [len(ids) for ids in model.ran] == [1, 1, 6, 3, 12, 1]

    run(question)


def test_versions_do_not_share_a_batch() -> None:
    async def question(batcher: Batcher, observed: list[int]) -> None:
        old: Any = Model("old")
        new: Any = Model("new")
        first = batcher.submit(old, batch(0))
        await begun(old)
        waiting = [batcher.submit(model, batch(1)) for model in (old, new, old, new, new)]
        old.free.release(9)
        new.free.release(9)
        await first
        found = await asyncio.gather(*waiting)
        assert [answer.version for answer in found] == ["old", "new", "old", "new", "new"]
        assert (old.ran, new.ran) == ([[0], [1], [1]], [[1], [1, 1]])

    run(question)


def test_a_full_queue_refuses_by_records() -> None:
    async def question(batcher: Batcher, observed: list[int]) -> None:
        model: Any = Model()
        model.free.release(9)
        kept = [batcher.submit(model, batch(*range(5))) for _ in range(2)]
        with pytest.raises(
            Refused, match="10 records are waiting, and 3 more would exceed its 12"
        ) as refused:
            batcher.submit(model, batch(1, 2, 3))
        assert refused.value.status == 429
        assert int(refused.value.headers["retry-after"]) >= 1
        kept.append(batcher.submit(model, batch(1, 2)))
        assert len(await asyncio.gather(*kept)) == 3
        await batcher.submit(model, batch(*range(12)))

    run(question, queue_rows=12)


def test_a_request_that_fails_leaves_the_others_of_its_batch_alone() -> None:
    async def question(batcher: Batcher, observed: list[int]) -> None:
        model: Any = Model()
        first = batcher.submit(model, batch(0))
        await begun(model)
        waiting = [batcher.submit(model, batch(id)) for id in (1, 13, 2)]
        waiting[0].cancel()  # a client that has gone
        model.free.release(9)
        await first
        found = await asyncio.gather(*waiting[1:], return_exceptions=True)
        assert isinstance(found[0], RuntimeError)
        assert isinstance(found[1], Scored)
        assert found[1].probabilities.tolist() == [2.0]
        assert (await batcher.submit(model, batch(3))).probabilities.tolist() == [3.0]

    run(question)


def test_small_requests_that_arrive_together_run_on_the_event_loop() -> None:
    async def question(batcher: Batcher, observed: list[int]) -> None:
        model: Any = Model()
        model.free.release(9)
        threads: list[int] = []
        run_one = model.run

        def run_and_note(batch: IdBatch) -> Any:
            threads.append(threading.get_ident())
            return run_one(batch)

        model.run = run_and_note
        small = [batcher.submit(model, batch(*ids)) for ids in ((1,), (2, 3))]
        assert lists(await asyncio.gather(*small)) == [[1.0], [2.0, 3.0]]
        large = batcher.submit(model, batch(*range(5)))
        behind = batcher.submit(model, batch(6))  # the thread has the model
        await asyncio.gather(large, behind)
        several = [batcher.submit(model, batch(*ids)) for ids in ((1, 2, 3), (4, 5))]  # 5 records are many
        assert lists(await asyncio.gather(*several)) == [[1.0, 2.0, 3.0], [4.0, 5.0]]
        assert model.ran[0] == [1, 2, 3]
        here = threading.get_ident()
        assert threads[0] == here
        assert here not in threads[1:]
        assert (sum(observed), batcher.rows) == (14, 0)

    run(question, loop_rows=4)
