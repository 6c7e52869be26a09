"""The sides of bench_server.py in .venv-peers (`make peers`): other servers around ham_dist's own `Scorer`.

python perf/serving_peers.py fastapi|litserve BUNDLE PORT
"""

import sys
from typing import Any

from ham_dist.serving import Scorer


def fastapi(bundle: str, port: int) -> None:
    """FastAPI with a pydantic model of the request, in one process."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Request(BaseModel):
        ids: dict[str, list[int]]

    class Answer(BaseModel):
        probabilities: list[float]

    scorer, app = Scorer(bundle), FastAPI()

    @app.post("/score")
    async def score(request: Request) -> Answer:
        return Answer(probabilities=scorer.score_ids(request.ids).tolist())

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def litserve(bundle: str, port: int) -> None:
    """LitServe with its batching, one worker."""
    import litserve as ls

    class Api(ls.LitAPI):
        def setup(self, device: Any) -> None:
            self.scorer = Scorer(bundle)

        def decode_request(self, request: Any) -> Any:
            return request["ids"]

        def batch(self, inputs: Any) -> Any:
            return {name: [id for ids in inputs for id in ids[name]] for name in inputs[0]}, [
                len(next(iter(ids.values()))) for ids in inputs
            ]

        def predict(self, batched: Any) -> Any:
            ids, sizes = batched
            return self.scorer.score_ids(ids).tolist(), sizes

        def unbatch(self, output: Any) -> Any:
            probabilities, sizes = output
            start = 0
            for size in sizes:
                yield probabilities[start : start + size]
                start += size

        def encode_response(self, output: Any) -> Any:
            return {"probabilities": output}

    api = Api(max_batch_size=64, batch_timeout=0.001, api_path="/score")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    {"fastapi": fastapi, "litserve": litserve}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
