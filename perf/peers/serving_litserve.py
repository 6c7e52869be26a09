"""A side of bench_server.py in .venv-peers (`make peers`): LitServe around ham_dist's `Scorer`, one worker.

    python perf/peers/serving_litserve.py BUNDLE PORT

Of its batching, the shortest timeout that forms batches is used.
"""

import sys
from itertools import accumulate
from typing import Any

import litserve as ls

from ham_dist.serving import Scorer


class Api(ls.LitAPI):
    """Requests with ids, in batches."""

    def __init__(self, bundle: str) -> None:
        super().__init__(max_batch_size=64, batch_timeout=0.001, api_path="/score")
        self.bundle = bundle

    def setup(self, device: Any) -> None:
        self.scorer = Scorer(self.bundle)

    def decode_request(self, request):  # LitServe takes an annotation for the type of the body
        return request["ids"]

    def batch(self, inputs: Any) -> Any:
        sizes = [len(next(iter(ids.values()))) for ids in inputs]
        return {name: [id for ids in inputs for id in ids[name]] for name in inputs[0]}, sizes

    def predict(self, batched: Any) -> Any:
        ids, sizes = batched
        return self.scorer.score_ids(ids).tolist(), sizes

    def unbatch(self, output: Any) -> list[Any]:
        probabilities, sizes = output
        ends = list(accumulate(sizes))
        return [probabilities[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def encode_response(self, output: Any) -> Any:
        return {"probabilities": output}


if __name__ == "__main__":
    server = ls.LitServer(Api(sys.argv[1]), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
