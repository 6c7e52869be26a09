"""Seconds of a training step with each sharding type on gloo ranks of this machine, relative to table_wise.

    python perf/bench_sharding.py --ranks 1 2 4 --rows 200000 --rounds 7

Sharding types take their steps in turn, round by round, so that a machine that slows down slows all of them;
figures are medians, and the ratio is taken round by round. With at most one core per rank, most of the time
is arithmetic and copying, not network.

The last column is the effect of prefetching ids (`ranks.prefetch_ids`): a step with it, relative to a step
without. The last line is the cost of equal parts of a batch, which row_wise needs: the time of adding empty
bags to a batch, relative to a step.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.config.schema import RunSettings
from ham_dist.data.reader.batch import Batch
from ham_dist.data.reader.order import rows_of_rank
from ham_dist.distributed.sharding.id_prefetch import padded
from ham_dist.io.huge_pages import use_huge_pages
from ham_dist.training.loop import weight_step
from ham_dist.training.state import TrainingState, open_supernet

SHARDING_TYPES = ("table_wise", "row_wise", "column_wise", "data_parallel")
FIELDS = 8
BATCH = 2048
STEPS = 10


def settings(sharding_type: str, table_optimizer: str) -> RunSettings:
    return RunSettings.model_validate(
        {
            "optimizer": {"tables": table_optimizer},
            "sharding": {"sharding_type": sharding_type},
            "orthogonality": {"form": "none"},
            "data": {"batch_size": BATCH},
        }
    )


def batch(num_embeddings: dict[str, int]) -> Batch:
    """This rank's part of a batch of random ids."""
    low, high = rows_of_rank(BATCH, dist.get_rank(), dist.get_world_size())
    ids = torch.cat(
        [torch.randint(rows, (high - low,), dtype=torch.int32) for rows in num_embeddings.values()]
    )
    features = KeyedJaggedTensor(list(num_embeddings), ids, lengths=torch.ones_like(ids), stride=high - low)
    return Batch(features, torch.randint(0, 2, (high - low,)).float(), BATCH)


def seconds_of_steps(state: TrainingState, batches: list[Batch], *, prefetch_ids: bool) -> float:
    """Seconds of a step, mean over the batches."""
    dist.barrier()
    start = time.perf_counter()
    for one in state.sharded.prefetch(iter(batches)) if prefetch_ids else batches:
        weight_step(state, one)
    dist.barrier()
    return (time.perf_counter() - start) / len(batches)


def median_ratio(values: list[float], bases: list[float]) -> float:
    return statistics.median(value / base for value, base in zip(values, bases, strict=True))


@dataclass
class Found:
    """Seconds of a step by sharding type, without and with prefetched ids; and of adding empty bags."""

    seconds: dict[str, list[float]]
    prefetched: dict[str, list[float]]
    padding: float


def measure(ranks: int, rows: int, rounds: int, table_optimizer: str) -> Found:
    """Measures on `ranks` new processes."""
    use_huge_pages()
    with TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            _measure, (ranks, rows, rounds, table_optimizer, folder), nprocs=ranks, join=True
        )
        return Found(**json.loads(Path(folder, "found.json").read_text(encoding="utf-8")))


def _measure(rank: int, ranks: int, rows: int, rounds: int, table_optimizer: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{folder}/store", ranks), rank=rank, world_size=ranks
    )
    num_embeddings = {f"field_{number}": rows for number in range(FIELDS)}
    batches = [batch(num_embeddings) for _ in range(STEPS)]
    states = {
        sharding_type: open_supernet(
            settings(sharding_type, table_optimizer),
            num_embeddings,
            torch.device("cpu"),
            single_valued=num_embeddings,
        )
        for sharding_type in SHARDING_TYPES
    }
    seconds: dict[str, list[float]] = {sharding_type: [] for sharding_type in SHARDING_TYPES}
    prefetched: dict[str, list[float]] = {sharding_type: [] for sharding_type in SHARDING_TYPES}
    for number in range(rounds + 1):
        for sharding_type, state in states.items():
            for prefetch_ids, figures in ((False, seconds), (True, prefetched)):
                taken = seconds_of_steps(state, batches, prefetch_ids=prefetch_ids)
                if number:  # the first round warms up
                    figures[sharding_type].append(taken)
    start = time.perf_counter()
    for one in batches:
        padded(one.sparse_features, one.sparse_features.stride() + 16)
    padding = (time.perf_counter() - start) / len(batches)
    if rank == 0:
        Path(folder, "found.json").write_text(
            json.dumps(asdict(Found(seconds, prefetched, padding))), encoding="utf-8"
        )
    dist.destroy_process_group()


def print_table(found: Found, title: str) -> None:
    print(f"\n| {title} | ms a step: median (lowest..highest) | of table_wise's | ids prefetched |")
    print("|---|---|---|---|")
    for sharding_type, values in found.seconds.items():
        of_table_wise, of_itself = (
            median_ratio(values, found.seconds["table_wise"]),
            median_ratio(found.prefetched[sharding_type], values),
        )
        spread = f"{statistics.median(values) * 1e3:.1f} ({min(values) * 1e3:.1f}..{max(values) * 1e3:.1f})"
        print(f"| {sharding_type} | {spread} | {of_table_wise:.2f} | {of_itself:.2f} |")
    of_a_step = found.padding / statistics.median(found.seconds["row_wise"])
    print(f"| empty bags for 16 rows more | {found.padding * 1e3:.2f} | {of_a_step:.3f} of row_wise's | |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=50_000, help="rows of each table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table-optimizers", nargs="+", default=["adam", "sgd"])
    arguments = parser.parse_args()
    for table_optimizer, ranks in product(arguments.table_optimizers, arguments.ranks):
        found = measure(ranks, arguments.rows, arguments.rounds, table_optimizer)
        title = f"{table_optimizer}, {ranks} ranks, {FIELDS} tables of {arguments.rows:,} x 16, {BATCH} rows"
        print_table(found, title)


if __name__ == "__main__":
    main()
