"""Cost of the mask, the step on alpha and orthogonality, compared with a plain training step; on one core.

    python perf/bench_search.py                        the cases in CASES: 10^5 to 10^8 rows
    python perf/bench_search.py --models dcnv2 --table-optimizers adam --rows 100000 1000000
    python perf/bench_search.py data/movielens-1m --models dcnv2 --table-optimizers adam

Without a data folder: 39 fields, of which 26 share the rows and 13 have 50 each, as Criteo's have; ids follow
a power law. Batches are in memory, so that only the steps are measured. The sides take twenty steps each in
turn (so that each round of the decoupled form has one application), from one state; figures are medians, and
a ratio is taken round by round.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice, product
from pathlib import Path
from typing import TypeVar

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.config.load import load_run
from ham_dist.config.schema import OrthogonalitySettings, RunSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks.process_group import process_group
from ham_dist.io.huge_pages import use_huge_pages
from ham_dist.training.loop import mask_gradient, weight_step
from ham_dist.training.regularizer import Regularizer
from ham_dist.training.samples import Samples
from ham_dist.training.state import TrainingState, open_supernet

T = TypeVar("T")
STEPS = OrthogonalitySettings().every
BATCHES = 10
CASES = (
    *(("deepfm", "rowwise_adagrad", rows) for rows in (10**5, 10**6, 10**7, 10**8)),
    *(
        case
        for case in product(("deepfm", "dcnv2"), ("rowwise_adagrad", "adam"), (10**6,))
        if case[:2] != ("deepfm", "rowwise_adagrad")
    ),
)
"""Models, table optimizers, and rows of all tables together."""
NUMERIC, CATEGORICAL = 13, 26
PLAIN, MASK, ALPHA, ALPHA_SELDOM = (
    "plain step",
    "with the mask",
    "with the mask and a step on alpha",
    "the same, alpha every 2 steps",
)
DECOUPLED = "orthogonality decoupled"


def num_embeddings_of(rows: int) -> dict[str, int]:
    """13 small fields, and 26 large ones of `rows` rows together."""
    return {f"I{n}": 50 for n in range(NUMERIC)} | {f"C{n}": rows // CATEGORICAL for n in range(CATEGORICAL)}


def generated(num_embeddings: dict[str, int], rows: int) -> Batch:
    """A batch in which smaller ids are more frequent."""
    ids = torch.cat(
        [(count * torch.rand(rows) ** 3).int().clamp(max=count - 1) for count in num_embeddings.values()]
    )
    features = KeyedJaggedTensor(list(num_embeddings), ids, lengths=torch.ones_like(ids), stride=rows)
    return Batch(features, torch.randint(0, 2, (rows,)).float(), rows)


def sides_of(state: TrainingState) -> dict[str, Callable[[Batch], object]]:
    """Each side's step on a batch."""
    settings = state.settings
    none = Regularizer(OrthogonalitySettings(form="none"), settings.optimizer)
    forms = {
        DECOUPLED: Regularizer(OrthogonalitySettings(application="decoupled"), settings.optimizer),
        "orthogonality coupled": Regularizer(OrthogonalitySettings(), settings.optimizer),
    }
    if state.sharded.table_optimizer.fused is not None:
        del forms["orthogonality coupled"]
    layout = state.sharded.mask.layout
    half = (torch.arange(layout.size) % 2).float()

    def step(
        mask: torch.Tensor | None, regularizer: Regularizer, *, alpha: int = 0
    ) -> Callable[[Batch], object]:
        count = 0

        def do(batch: Batch) -> None:
            nonlocal count
            if alpha and count % alpha == 0:
                mask_gradient(state, batch, half)
            count += 1
            state.sharded.mask.set(mask)
            state.regularizer = regularizer
            weight_step(state, batch)

        return do

    return {
        PLAIN: step(None, none),
        MASK: step(half, none),
        ALPHA: step(half, none, alpha=1),
        ALPHA_SELDOM: step(half, none, alpha=2),
        **{name: step(None, regularizer) for name, regularizer in forms.items()},
    }


def seconds_of_steps(state: TrainingState, batches: list[Batch], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each side, by round."""
    sides = sides_of(state)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    supply = cycle(batches)
    for number in range(rounds + 1):
        for name, step in sides.items():
            start = time.perf_counter()
            for batch in islice(supply, STEPS):
                step(batch)
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / STEPS)
    return seconds


def ratios(seconds: list[float], of: list[float]) -> list[float]:
    """The ratios of two sides, round by round."""
    return [ours / theirs for ours, theirs in zip(seconds, of, strict=True)]


def settings_of(model: str, table_optimizer: str, batch_size: int) -> RunSettings:
    application = "coupled" if table_optimizer == "adam" else "decoupled"
    settings = [
        f"model.name={model}",
        f"optimizer.tables={table_optimizer}",
        f"orthogonality.application={application}",
        f"data.batch_size={batch_size}",
        "precision.dense=float32",
    ]
    return load_run(None, settings)


def print_table(seconds: dict[str, list[float]], title: str) -> None:
    print(f"\n| {title} | ms: median (lowest..highest) | of a plain step |\n|---|---|---|")
    for name, values in seconds.items():
        ratio = statistics.median(ratios(values, seconds[PLAIN]))
        print(
            f"| {name} | {statistics.median(values) * 1e3:.2f} "
            f"({min(values) * 1e3:.2f}..{max(values) * 1e3:.2f}) | {ratio:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="folder that `ham-dist prepare` wrote")
    parser.add_argument("--rows", type=int, nargs="+", help="of all tables together")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--table-optimizers", nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    cases = CASES
    if options.data or options.rows or options.models or options.table_optimizers:
        cases = tuple(
            product(
                options.models or ["deepfm", "dcnv2"],
                options.table_optimizers or ["rowwise_adagrad", "adam"],
                options.rows or [10**6],
            )
        )
    use_huge_pages()
    for model, table_optimizer, rows in cases:
        seconds, all_rows = in_new_process(_seconds_of_case, model, table_optimizer, rows, options)
        print_table(seconds, f"{model}, {table_optimizer}, {all_rows:,} rows, batch {options.batch}")


def _seconds_of_case(
    model: str, table_optimizer: str, rows: int, options: argparse.Namespace
) -> tuple[dict[str, list[float]], int]:
    """Seconds of each side's step, by round; and rows of all tables."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = settings_of(model, table_optimizer, options.batch)
    with process_group() as device:
        if options.data is None:
            num_embeddings = num_embeddings_of(rows)
            single_valued = set(num_embeddings)
            batches = [generated(num_embeddings, options.batch) for _ in range(BATCHES)]
        else:
            manifest = Manifest.load(options.data)
            num_embeddings, single_valued = manifest.num_embeddings(), manifest.single_valued()
            batches = list(
                islice(Samples(options.data, manifest, settings, device).training("pretrain", 0), BATCHES)
            )
        state = open_supernet(settings, num_embeddings, device, single_valued)
        return seconds_of_steps(state, batches, options.rounds), sum(num_embeddings.values())


def in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """Returns `function(*arguments)`, called in a new process that has allocated nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    main()
