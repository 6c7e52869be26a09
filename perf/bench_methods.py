"""Cost of a search step of every method, compared with a plain training step; on one core.

    python perf/bench_methods.py                              generated ids, 10^6 rows, as in bench_search.py
    python perf/bench_methods.py data/movielens-1m --models dcnv2 --rounds 7

A search step is the method's own step and a training step under its mask. Methods that choose once have none;
for those that read data, the time per batch of their pass is given. All sides take twenty steps each in turn;
a ratio is taken round by round. AutoDim with a table per candidate has a supernet of its own, and is compared
with a plain step of that one.
"""

import argparse
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import torch
from bench_search import (
    BATCHES,
    PLAIN,
    STEPS,
    generated,
    in_new_process,
    num_embeddings_of,
    print_table,
)

from ham_dist.config.load import load_run
from ham_dist.config.schema import RunSettings
from ham_dist.config.target import Target
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks.process_group import process_group
from ham_dist.methods.budget import Budget
from ham_dist.methods.method import Method, SearchSpace
from ham_dist.methods.registry import METHODS
from ham_dist.stages.search import loss_of
from ham_dist.training.loop import weight_step
from ham_dist.training.samples import Samples
from ham_dist.training.state import TrainingState, open_supernet

CANDIDATES = "model.candidates=[2, 4, 8]"
OPTIONS: dict[str, tuple[str, ...]] = {
    "autodim, nested": ("search.method.prefixes=[2, 4, 8]",),
    "autodim": (CANDIDATES,),
    "pep, element": ("search.method.granularity=element",),
    "sam": (),
    "sam_gs": (),
    "ham": (),
    "ham, exact top": ("search.method.mask=top",),
    "ham_p": (),
    "irazor": (),
    "sseds": (),
    "loo": (),
}
"""Settings of each side; its name starts with that of its method."""


def settings_of(model: str, batch: int, name: str) -> RunSettings:
    """The settings of one side."""
    method = () if name == PLAIN else (f"search.method.name={name.partition(',')[0]}", *OPTIONS[name])
    return load_run(None, [f"model.name={model}", f"data.batch_size={batch}", *method])


def step_of(state: TrainingState, name: str, settings: RunSettings) -> Callable[[Batch], object]:
    """One step of a side on a batch, which is the training and the validation batch."""
    if name == PLAIN:

        def plain(batch: Batch) -> None:
            state.sharded.mask.set(None)
            state.transform = None
            weight_step(state, batch)

        return plain
    method = _method(state, settings)
    transform = method.transform(state.sharded)

    def search(batch: Batch) -> None:
        method.step(loss_of(state, batch, method.closed))
        state.sharded.mask.set(method.mask())
        state.transform = transform
        weight_step(state, batch)

    def score(batch: Batch) -> None:
        method.score(iter([loss_of(state, batch, method.closed)]))

    return search if method.searches else score


def _method(state: TrainingState, settings: RunSettings) -> Method:
    layout = state.sharded.mask.layout
    space = SearchSpace(
        layout=layout,
        budget=Budget(Target(columns=layout.size // 2), layout),
        column_norms=lambda: torch.ones(layout.size),
        seed=0,
        device=state.sharded.device,
        bands=state.interaction.bands(),
    )
    return METHODS[settings.search.method.name](space, settings.search.method)


def seconds_by_side(
    names: list[str], model: str, options: argparse.Namespace
) -> tuple[dict[str, list[float]], int]:
    """Seconds of a step of each side, by round, from one supernet; and rows of all tables."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    of_model = settings_of(model, options.batch, names[1])
    with process_group() as device:
        if options.data is None:
            num_embeddings = num_embeddings_of(options.rows)
            single_valued = set(num_embeddings)
            batches = [generated(num_embeddings, options.batch) for _ in range(BATCHES)]
        else:
            manifest = Manifest.load(options.data)
            num_embeddings, single_valued = manifest.num_embeddings(), manifest.single_valued()
            samples = Samples(options.data, manifest, of_model, device)
            batches = list(islice(samples.training("pretrain", 0), BATCHES))
        state = open_supernet(of_model, num_embeddings, device, single_valued)
        sides = {name: step_of(state, name, settings_of(model, options.batch, name)) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        supply = cycle(batches)
        for number in range(options.rounds + 1):
            for name, step in sides.items():
                steps = 1 if name == "loo" else STEPS
                start = time.perf_counter()
                for batch in islice(supply, steps):
                    step(batch)
                if number:  # the first round warms up
                    seconds[name].append((time.perf_counter() - start) / steps)
        return seconds, sum(num_embeddings.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="folder that `ham-dist prepare` wrote")
    parser.add_argument("--rows", type=int, default=10**6, help="of all tables together")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--models", nargs="+", default=["dcnv2", "deepfm"])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    own = [name for name, settings in OPTIONS.items() if CANDIDATES in settings]
    for model in options.models:
        for names in ([PLAIN, *(name for name in OPTIONS if name not in own)], [PLAIN, *own]):
            seconds, rows = in_new_process(seconds_by_side, names, model, options)
            print_table(seconds, f"{model}, {rows:,} rows, batch {options.batch}")


if __name__ == "__main__":
    main()
