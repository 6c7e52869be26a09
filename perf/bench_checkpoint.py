"""The cost of checkpoints and of the loss check for training steps, on one rank and on two.

    OMP_NUM_THREADS=1 python perf/bench_checkpoint.py

For each number of ranks: a plain training step; the exchange that makes each step's loss known to all ranks
before any weight changes; and how long training stops for a checkpoint of a million rows of 16 columns with
their Adam moments: copied and written in the background, or written while training waits. The variants take
turns; figures are medians (lowest..highest) of rank 0.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from ranks import on_ranks

from ham_dist.config.schema import RunSettings
from ham_dist.config.synthetic import SyntheticSettings

NUM_EMBEDDINGS = (400_000, 300_000, 200_000, 100_000)
STEPS, EXCHANGES, SAVES = 30, 500, 5


def costs(data: Path, out: Path) -> dict[str, list[float]]:
    """Seconds of each kind of work, and bytes of this rank's part of a checkpoint; called on each rank."""
    from ham_dist.data.format.manifest import Manifest
    from ham_dist.distributed.checkpoint.writer import CheckpointWriter, bytes_here
    from ham_dist.distributed.ranks import process_group
    from ham_dist.training.loop import weight_step
    from ham_dist.training.samples import Samples
    from ham_dist.training.state import open_supernet

    settings = RunSettings.model_validate({"orthogonality": {"form": "none"}})
    found: dict[str, list[float]] = {
        "step": [],
        "exchange": [],
        "copied": [],
        "copied and written": [],
        "written while waiting": [],
    }
    with process_group.process_group() as device:
        manifest = Manifest.load(data)
        samples = Samples(data, manifest, settings, device)
        state = open_supernet(settings, manifest.num_embeddings(), device, manifest.single_valued())
        for epoch in range(-(-STEPS // samples.steps)):
            for batch in samples.training("pretrain", epoch):
                start = time.perf_counter()
                weight_step(state, batch)
                found["step"].append(time.perf_counter() - start)
        for _ in range(EXCHANGES):
            start = time.perf_counter()
            process_group.sum_numbers(0.5, 0.0, 0.0)
            found["exchange"].append(time.perf_counter() - start)
        tensors = state.tensors()
        found["bytes"] = [sum(map(bytes_here, tensors.values()))]
        for number in range(SAVES):
            for copy_bytes in (2**40, 0):
                with CheckpointWriter(copy_bytes, timedelta(minutes=10)) as writer:
                    process_group.gather_objects(None)
                    start = time.perf_counter()
                    writer.start(writer.snapshot(out / f"checkpoint-{number % 2}", tensors, {}), lambda: None)
                    stopped = time.perf_counter() - start
                    assert writer.settle() is None
                    whole = time.perf_counter() - start
                if copy_bytes:
                    found["copied"].append(stopped)
                    found["copied and written"].append(whole)
                else:
                    found["written while waiting"].append(stopped)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank-writes", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_writes:
        found = costs(options.data, options.rank_writes.parent)
        if os.environ["RANK"] == "0":
            options.rank_writes.write_text(json.dumps(found), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as temporary:
        from ham_dist.data.synthetic.write import generate

        data = Path(temporary) / "data"
        generate(
            SyntheticSettings(rows=30_000, planted_ranks=(2, 2, 1, 1), num_embeddings=NUM_EMBEDDINGS), data
        )
        print(
            "| ranks | step | exchange of a step | of a step | MB of rank 0 "
            "| stop, copied | and written after | stop, not copied |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for ranks in (1, 2):
            file = Path(temporary) / f"{ranks}.json"
            on_ranks(ranks, __file__, "--data", str(data), "--rank-writes", str(file))
            found = json.loads(file.read_text(encoding="utf-8"))
            share = statistics.median(found["exchange"]) / statistics.median(found["step"])
            stops = " | ".join(
                shown(found[kind], 1e3, "ms")
                for kind in ("copied", "copied and written", "written while waiting")
            )
            steps, exchange = shown(found["step"], 1e3, "ms"), shown(found["exchange"], 1e6, "us")
            print(
                f"| {ranks} | {steps} | {exchange} | {share:.2%} | {found['bytes'][0] / 1e6:.0f} | {stops} |"
            )


def shown(seconds: list[float], scale: float, unit: str) -> str:
    """Median (lowest..highest)."""
    low, middle, high = (scale * value for value in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"{middle:.3g} {unit} ({low:.3g}..{high:.3g})"


if __name__ == "__main__":
    main()
