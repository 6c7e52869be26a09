"""Compares 1, 2 and 3 ranks: losses of the first 50 steps of every stage, and the columns that a run keeps.

    python perf/ranks.py --data data/movielens-1m     50 steps a stage; without --data on the demo's data
    python perf/ranks.py --whole                      also the whole demo run on 1, 2 and 3 ranks

Pretraining starts from the initial weights, the search from those of one rank after 50 steps, retraining from
those of one rank after 50 more steps, sliced to 16 columns: each stage starts from one checkpoint that all
read. (If each number of ranks continued from its own weights, 3 ranks and 1 would drift apart, since Adam
turns the last digit of a gradient that nearly cancels into a visible part of a step.)
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

RANKS = (1, 2, 3)
STEPS = 50
COLUMNS = 16


def losses_of_stages(data: Path, starts: Path, precision: str) -> dict[str, list[float]]:
    """The global loss of each step, by stage; called on each rank.

    One rank alone writes the initial state of each stage to `starts`; several ranks read it there.
    """
    import torch

    from ham_dist.config.schema import PrecisionSettings, RunSettings
    from ham_dist.config.target import Target
    from ham_dist.data.format.manifest import Manifest
    from ham_dist.distributed.checkpoint import storage
    from ham_dist.distributed.ranks import process_group
    from ham_dist.distributed.sharding import gram
    from ham_dist.methods.budget import Budget
    from ham_dist.methods.ham import HardAuxiliaryMask
    from ham_dist.methods.method import SearchSpace
    from ham_dist.stages.search import loss_of
    from ham_dist.training.loop import weight_step
    from ham_dist.training.samples import Samples
    from ham_dist.training.slicing import slice_state
    from ham_dist.training.state import open_supernet

    settings = RunSettings(precision=PrecisionSettings(dense=precision))
    losses: dict[str, list[float]] = {"pretrain": [], "search": [], "retrain": []}
    with process_group.process_group() as device:
        manifest = Manifest.load(data)
        samples = Samples(data, manifest, settings, device)
        state = open_supernet(settings, manifest.num_embeddings(), device, manifest.single_valued())
        layout = state.sharded.mask.layout
        space = SearchSpace(
            layout,
            Budget(Target(columns=COLUMNS), layout),
            lambda: gram.column_norms(state.sharded),
            0,
            device,
        )
        method, validation = (
            HardAuxiliaryMask(space, settings.search.method),
            samples.forever("validation", 0),
        )
        for stage in losses:
            alone = process_group.world_size() == 1
            if stage == "retrain":
                kept = layout.split(method.choice())
                if not alone:
                    kept = {
                        field: torch.tensor(numbers, dtype=torch.int64)
                        for field, numbers in storage.read_values(starts / stage)["columns"].items()
                    }
                state = slice_state(state, kept)
            if alone:
                values = {
                    "columns": {
                        field: numbers.tolist() for field, numbers in layout.split(method.choice()).items()
                    }
                }
                storage.save(
                    starts / stage,
                    {**state.tensors(), **method.tensors()},
                    {**values, "steps": state.optimizers.steps},
                )
            else:
                state.optimizers.steps = storage.load(
                    starts / stage, {**state.tensors(), **method.tensors()}
                )["steps"]
            for _, batch in zip(range(STEPS), samples.training(stage, 0), strict=False):
                if stage == "search":
                    method.step(loss_of(state, next(validation)))
                    state.sharded.mask.set(method.mask())
                losses[stage].append(float(process_group.sum_over_ranks(weight_step(state, batch).double())))
    return losses


def on_ranks(ranks: int, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])


def sha256_of_tensors(bundle: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(bundle.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--precision", choices=("float64", "float32"), help=argparse.SUPPRESS)
    parser.add_argument("--rank-writes", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_writes:
        options.rank_writes.write_text(
            json.dumps(losses_of_stages(options.data, options.rank_writes.parent, options.precision)),
            encoding="utf-8",
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        data = options.data
        if data is None:
            from ham_dist.config.synthetic import SyntheticSettings
            from ham_dist.data.synthetic.write import generate

            generate(SyntheticSettings(), data := Path(temporary) / "synthetic")
        for precision in ("float64", "float32"):
            starts = Path(temporary) / precision
            starts.mkdir()
            found = {}
            for ranks in RANKS:
                file = starts / f"{ranks}.json"
                on_ranks(
                    ranks, __file__, "--data", str(data), "--rank-writes", str(file), "--precision", precision
                )
                found[ranks] = json.loads(file.read_text(encoding="utf-8"))
            print(
                f"\nDense weights in {precision}: largest difference of a step's loss from one rank's, "
                f"over the first {STEPS} steps\n"
            )
            print("| stage | first and last loss | 2 ranks | 3 ranks |\n|---|---|---|---|")
            for stage, one in found[1].items():
                differences = [
                    max(abs(a - b) for a, b in zip(one, found[ranks][stage], strict=True)) for ranks in (2, 3)
                ]
                print(
                    f"| {stage} | {one[0]:.4f}, {one[-1]:.4f} | {differences[0]:.1e} | {differences[1]:.1e} |"
                )
        if options.whole:
            print(
                "\nColumns that the demo run keeps, its test AUC, and sha256 of all tensors in its bundle\n"
            )
            print("| ranks | columns kept | test AUC | bundle |\n|---|---|---|---|")
            for ranks in RANKS:
                folder = Path(temporary) / f"run-{ranks}"
                on_ranks(ranks, "-m", "ham_dist.train", "--run-dir", str(folder))
                result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
                kept = ", ".join(map(str, result["kept_columns"].values()))
                digest = sha256_of_tensors(folder / "bundle")[:16]
                print(f"| {ranks} | {kept} | {result['test_auc']:.12f} | {digest} |")


if __name__ == "__main__":
    main()
