"""Bytes, traffic and time of a step by number of GPUs, computed by the planner and an assumed machine.

    python perf/scaling.py --parameters 1e9 1e11 1e12 --gpus 1 8 32 128

No GPU is used. Bytes held and sent follow from the plan (a test compares the same formulas with what is
allocated and sent); times follow from them and from the assumptions below, whose sources are in
`docs/scaling.md`. Change them for another machine.
"""

import argparse
from dataclasses import dataclass

from ham_dist.config.load import load_run
from ham_dist.distributed.planning.table_optimizers import table_optimizer_of
from ham_dist.distributed.planning.topology import Topology
from ham_dist.distributed.planning.traffic import RankCost, costs_by_rank
from ham_dist.errors import ShardingError
from ham_dist.training.state import plan_for, table_groups

FIELDS, EMBEDDING_DIM = 40, 16
GPUS_OF_HOST = 8
SETTINGS = (
    "optimizer.tables=rowwise_adagrad",
    "orthogonality.application=decoupled",
    "precision.dense=float32",
)


@dataclass(frozen=True)
class Machine:
    """The assumed performance of a rank.

    Attributes:
        memory: Bytes that a GPU holds.
        lookups: Bytes a second of table rows read at random.
        within: Bytes a second to ranks of its host, in each direction at once.
        between: Bytes a second to ranks of other hosts.
        arithmetic: Floating-point operations a second in the dense part.
        fixed: Constant seconds of a step: kernel launches, and waiting for the slowest rank.
    """

    memory: float = 80e9
    lookups: float = 0.4 * 2.0e12
    within: float = 0.7 * 300e9
    between: float = 0.8 * 25e9
    arithmetic: float = 0.3 * 156e12
    fixed: float = 3e-3


def seconds(cost: RankCost, machine: Machine, *, rows: int, ranks: int) -> dict[str, float]:
    """Seconds of the parts of a training step of DCN-V2 with `rows` samples on this rank, without overlap."""
    elsewhere = max(0, ranks - GPUS_OF_HOST) / max(1, ranks - 1)
    width = FIELDS * EMBEDDING_DIM
    return {
        # A row is read for the lookup, and read and written by the fused kernel. Lookups of other ranks count
        # here.
        "lookups": 3
        * (cost.vectors_out * ranks / (ranks - 1) if ranks > 1 else rows * width * 4)
        / machine.lookups,
        "exchange": cost.out * (1 - elsewhere) / machine.within + cost.out * elsewhere / machine.between,
        # 3 D^2 weights in the cross layers, and a small MLP; two operations a weight, twice that backward.
        "dense": 3 * 2 * (3 * width**2 + 20 * width) * rows / machine.arithmetic,
        "fixed": machine.fixed if ranks > 1 else machine.fixed / 3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, nargs="+", default=[1e9, 1e11, 1e12])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128])
    parser.add_argument("--batch", type=int, default=65_536, help="rows of the global batch")
    parser.add_argument(
        "--batch-of-gpu",
        type=int,
        help="rows of each GPU's part instead, so that the global batch grows with the GPUs",
    )
    options = parser.parse_args()
    machine = Machine()
    print(
        "| parameters | GPUs | sharding types | GB per GPU, at most | MB sent per GPU and step, at most "
        "| ms: lookups | exchange | dense | fixed | million samples/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for parameters in options.parameters:
        num_embeddings = {
            f"field_{number}": int(parameters / FIELDS / EMBEDDING_DIM) for number in range(FIELDS)
        }
        for gpus in options.gpus:
            batch = options.batch if options.batch_of_gpu is None else options.batch_of_gpu * gpus
            settings = load_run(None, [*SETTINGS, f"data.batch_size={batch}"])
            groups = table_groups(settings, num_embeddings)
            topology = Topology("cuda", gpus, min(gpus, GPUS_OF_HOST), int(machine.memory))
            try:
                plan = plan_for(settings, groups, topology)
            except ShardingError:
                print(f"| {parameters:.0e} | {gpus} | no plan: too little memory | | | | | | | |", flush=True)
                continue
            costs = costs_by_rank(plan, table_optimizer_of(settings.optimizer), topology, batch, {})
            sharding_types = ", ".join(sorted({placement.sharding_type for placement in plan.placements}))
            parts = [seconds(cost, machine, rows=-(-batch // gpus), ranks=gpus) for cost in costs]
            slowest = max(parts, key=lambda part: sum(part.values()))
            held, out = (
                max(cost.tables + cost.training_state for cost in costs),
                max(cost.out for cost in costs),
            )
            times = " | ".join(
                f"{1e3 * slowest[name]:.2f}" for name in ("lookups", "exchange", "dense", "fixed")
            )
            rate = batch / sum(slowest.values()) / 1e6
            print(
                f"| {parameters:.0e} | {gpus} | {sharding_types} | {held / 1e9:.2f} | {out / 1e6:.1f} "
                f"| {times} | {rate:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
