"""A side of bench_server.py in .venv-peers (`make peers`): FastAPI around ham_dist's `Scorer`, one process.

python perf/peers/serving_fastapi.py BUNDLE PORT
"""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from ham_dist.serving import Scorer


class Request(BaseModel):
    ids: dict[str, list[int]]


class Answer(BaseModel):
    probabilities: list[float]


def main(bundle: str, port: int) -> None:
    scorer, app = Scorer(bundle), FastAPI()

    @app.post("/score")
    async def score(request: Request) -> Answer:
        return Answer(probabilities=scorer.score_ids(request.ids).tolist())

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
