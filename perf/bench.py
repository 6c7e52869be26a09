"""The main performance figures of ham_dist, as one table of ratios.

    python perf/bench.py                           `make bench`; about twenty minutes on 2 idle cores
    python perf/bench.py --parts search memory      without the ranks and the other programs
    python perf/bench.py --rounds 7

For search and training, the two sides of a ratio take turns in one run, and the figure is the median over the
rounds. Ranks are 1, then 2, then 4: steps with and without prefetched ids take turns; the comparison with one
rank is with a separate run. Memory is measured once, in one process for each size. Each part has a script
with more detail: bench_search.py, bench_training.py, bench_sharding.py, large_table.py.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import bench_search
import bench_sharding
import bench_training
import torch
from bench_search import ratios
from training_side import peak_bytes

from ham_dist.distributed.ranks.process_group import process_group
from ham_dist.io.huge_pages import use_huge_pages
from ham_dist.training.loop import weight_step
from ham_dist.training.state import open_supernet

ROWS = (10**5, 10**6, 10**7, 10**8)
"""Rows of all tables together."""
BASE = 10**6
EMBEDDING_DIM = 16


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Attributes:
        rounds: The ratio in each round.
        wanted: The target, if there is one.
    """

    name: str
    rounds: list[float]
    wanted: str = ""

    def line(self) -> str:
        spread = f"({min(self.rounds):.3f}..{max(self.rounds):.3f})"
        return f"| {self.name} | {statistics.median(self.rounds):.3f} {spread} | {self.wanted} |"


def seconds_of_search(rounds: int) -> tuple[dict[int, dict[str, list[float]]], dict[int, list[float]]]:
    """Seconds of DeepFM's steps as in bench_search.py, and of plain steps in turn; each by rows."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = bench_search.settings_of("deepfm", "rowwise_adagrad", 2048)
    of_sides, plain = {}, defaultdict(list)
    with process_group() as device:
        states, batches = {}, {}
        for rows in ROWS:
            num_embeddings = bench_search.num_embeddings_of(rows)
            batches[rows] = [
                bench_search.generated(num_embeddings, settings.data.batch_size)
                for _ in range(bench_search.BATCHES)
            ]
            states[rows] = open_supernet(settings, num_embeddings, device, single_valued=num_embeddings)
            of_sides[rows] = bench_search.seconds_of_steps(states[rows], batches[rows], rounds)
        steps = {rows: bench_search.sides_of(state)[bench_search.PLAIN] for rows, state in states.items()}
        for number in range(2 * rounds + 1):
            for rows, step in steps.items():
                start = time.perf_counter()
                for batch in batches[rows]:
                    step(batch)
                if number:
                    plain[rows].append(time.perf_counter() - start)
    return of_sides, dict(plain)


def search(rounds: int) -> Iterator[Figure]:
    of_sides, plain = bench_search.in_new_process(seconds_of_search, rounds)
    for rows, seconds in of_sides.items():
        for name, wanted in (
            (bench_search.MASK, "1.02"),
            (bench_search.ALPHA, "1.5"),
            (bench_search.ALPHA_SELDOM, "1.5"),
            (bench_search.DECOUPLED, "1.05"),
        ):
            yield Figure(
                f"{name}, of a plain step at {rows:,} rows",
                ratios(seconds[name], seconds[bench_search.PLAIN]),
                wanted,
            )
    for rows in ROWS:
        if rows != BASE:
            wanted = "1.3" if rows == ROWS[-1] else ""
            yield Figure(
                f"a plain step at {rows:,} rows, of one at {BASE:,}", ratios(plain[rows], plain[BASE]), wanted
            )


def memory_of_steps(rows: int) -> tuple[int, int]:
    """Peak bytes of twenty steps, and bytes of the tables and their optimizer state."""
    torch.set_num_threads(1)
    num_embeddings = bench_search.num_embeddings_of(rows)
    settings = bench_search.settings_of("deepfm", "rowwise_adagrad", 2048)
    with process_group() as device:
        state = open_supernet(settings, num_embeddings, device, single_valued=num_embeddings)
        batch = bench_search.generated(num_embeddings, settings.data.batch_size)
        for _ in range(20):
            weight_step(state, batch)
    return peak_bytes(), sum(num_embeddings.values()) * (EMBEDDING_DIM + 1) * 4


def memory() -> Iterator[Figure]:
    base, _ = bench_search.in_new_process(memory_of_steps, 1000)
    for rows in ROWS[1:]:
        peak, held = bench_search.in_new_process(memory_of_steps, rows)
        yield Figure(
            f"memory of training at {rows:,} rows beyond that at 1,000, of tables and optimizer state",
            [(peak - base) / held],
            "1.25",
        )


def ranks(rounds: int) -> Iterator[Figure]:
    alone: dict[str, list[float]] = {}
    for count in (1, 2, 4):
        found = bench_sharding.measure(count, 50_000, rounds, "sgd")
        alone = alone or found.seconds
        for sharding_type, seconds in found.seconds.items():
            if count > 1:
                yield Figure(
                    f"{sharding_type}: a step of {count} ranks on 2 cores, of one rank's in a run before",
                    ratios(seconds, alone[sharding_type]),
                )
                yield Figure(
                    f"{sharding_type}: ids prefetched on {count} ranks, of without",
                    ratios(found.prefetched[sharding_type], seconds),
                )


WANTED = {
    ("deepfm", "rowwise_adagrad"): {"torchrec": "0.95", "fuxictr": "7", "deepctr": "7"},
    ("deepfm", "adam"): {"torchrec": "0.95", "fuxictr": "2.9", "deepctr": "2.9"},
    ("dcnv2", "rowwise_adagrad"): {"torchrec": "0.95", "fuxictr": "1.75", "deepctr": "1.75"},
    ("dcnv2", "adam"): {"torchrec": "0.95"},
}


def training(rounds: int) -> Iterator[Figure]:
    for model, samples in (("deepfm", 200_000), ("dcnv2", 80_000)):
        sides = bench_training.installed_sides(model)
        with bench_training.generated_data(samples) as folder:
            found = bench_training.measure(folder, model, sides, rounds)
        for ours in (side for side in sides if side.program == "ham_dist"):
            for theirs in sides:
                like_ours = {
                    "ham_dist": False,
                    "torchrec": (theirs.tables, theirs.has_lift) == (ours.tables, ours.has_lift),
                    "torch": theirs.has_lift == ours.has_lift,
                }
                if like_ours.get(theirs.program, True):  # a peer is compared with both of ours
                    name = f"{model}: samples/s of {ours.label}, of {theirs.label}"
                    wanted = WANTED[model, ours.tables].get(theirs.program, "")
                    yield Figure(
                        name,
                        bench_training.ratios(found, ours.label, theirs.label),
                        wanted and f"at least {wanted}",
                    )


def main() -> None:
    parts: dict[str, Callable[[int], Iterator[Figure]]] = {
        "search": search,
        "memory": lambda _: memory(),
        "ranks": ranks,
        "training": training,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    use_huge_pages()
    print("| figure | ratio: median (lowest..highest) | target (at most, unless stated) |\n|---|---|---|")
    for part in options.parts:
        for figure in parts[part](options.rounds):
            print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
