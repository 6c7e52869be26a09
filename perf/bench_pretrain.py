"""Pretraining compared with plain torch: seconds of an epoch, and test AUC after early stopping.

    python perf/bench_pretrain.py data/movielens-1m --rounds 5 --seeds 3

Both programs train on the same samples in the same order. Their epochs alternate, so that a machine that
slows down slows both; figures are medians, and the ratio is taken round by round.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from plain import PlainModel, plain_auc, plain_epoch

from ham_dist.config.load import load_run
from ham_dist.config.schema import RunSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.synthetic.write import generate
from ham_dist.distributed.ranks.process_group import process_group
from ham_dist.training.evaluation import evaluate
from ham_dist.training.loop import weight_step
from ham_dist.training.samples import Samples
from ham_dist.training.state import TrainingState, open_supernet
from ham_dist.training.stopping import EarlyStopper

MIRRORED = (
    "seed",
    "data.",
    "pretrain.",
    "model.name",
    "model.base_dim",
    "model.mlp",
    "model.cross_layers",
    "optimizer.learning_rate",
)
"""Settings that both programs follow."""


def ham_epoch(state: TrainingState, samples: Samples, epoch: int) -> None:
    """One epoch of pretraining by ham_dist, without log and checkpoints, as in the plain program."""
    for batch in samples.training("pretrain", epoch):
        weight_step(state, batch)


def timed(work, *arguments) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def epoch_seconds(settings: RunSettings, samples: Samples, manifest: Manifest, rounds: int) -> None:
    state = open_supernet(settings, manifest.num_embeddings(), samples.device, manifest.single_valued())
    plain = {
        fused: PlainModel(settings, manifest.num_embeddings()).to(samples.device) for fused in (False, True)
    }
    adam = {
        fused: torch.optim.Adam(model.parameters(), lr=settings.optimizer.learning_rate, fused=fused)
        for fused, model in plain.items()
    }
    seconds = {"ham_dist": [], "plain, Adam": [], "plain, Adam(fused=True)": []}
    for epoch in range(rounds + 1):
        taken = {
            "ham_dist": timed(ham_epoch, state, samples, epoch),
            "plain, Adam": timed(plain_epoch, plain[False], adam[False], settings, samples, epoch),
            "plain, Adam(fused=True)": timed(plain_epoch, plain[True], adam[True], settings, samples, epoch),
        }
        if epoch:  # the first round warms up
            for name, value in taken.items():
                seconds[name].append(value)
    print("| program | seconds an epoch: median (lowest..highest) | ham_dist takes, of its time |")
    print("|---|---|---|")
    for name, values in seconds.items():
        ratio = statistics.median(
            ours / theirs for ours, theirs in zip(seconds["ham_dist"], values, strict=True)
        )
        print(
            f"| {name} | {statistics.median(values):.2f} "
            f"({min(values):.2f}..{max(values):.2f}) | {ratio:.2f} |"
        )


def test_auc(settings: RunSettings, samples: Samples, manifest: Manifest) -> tuple[float, float]:
    """Test AUC of ham_dist's supernet and of the plain one, each at its epoch of best validation AUC."""
    found = []
    state = open_supernet(settings, manifest.num_embeddings(), samples.device, manifest.single_valued())
    plain = PlainModel(settings, manifest.num_embeddings()).to(samples.device)
    adam = torch.optim.Adam(plain.parameters(), lr=settings.optimizer.learning_rate)
    programs = [
        (
            lambda epoch: ham_epoch(state, samples, epoch),
            lambda split: evaluate(state, samples.evaluation(split)).auc,
        ),
        (
            lambda epoch: plain_epoch(plain, adam, settings, samples, epoch),
            lambda split: plain_auc(plain, samples, split),
        ),
    ]
    for train, auc in programs:
        stopper, best, epoch = EarlyStopper(settings.pretrain.patience), 0.0, 0
        while epoch < settings.pretrain.max_epochs and not stopper.done:
            train(epoch)
            epoch += 1
            stopper.saw(auc("validation"), epoch)
            if stopper.best_epoch == epoch:
                best = auc("test")
        found.append(best)
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "data", type=Path, nargs="?", help="folder that `ham-dist prepare` wrote; without one, generated data"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options = parser.parse_args()
    refused = [setting for setting in options.overrides if not setting.startswith(MIRRORED)]
    if refused:
        parser.error(f"plain.py does not follow {', '.join(refused)}; only {', '.join(MIRRORED)}")
    with process_group() as device, tempfile.TemporaryDirectory() as temporary:
        settings = load_run(None, options.overrides)
        data = options.data or Path(temporary) / "synthetic"
        if options.data is None:
            generate(settings.data.synthetic, data)
        manifest = Manifest.load(data)
        print(
            f"{manifest.name}, {settings.model.name}, batch {settings.data.batch_size}, "
            f"{torch.get_num_threads()} thread(s)\n"
        )
        if options.rounds:
            epoch_seconds(settings, Samples(data, manifest, settings, device), manifest, options.rounds)
        if options.seeds:
            print("\n| seed | ham_dist, test AUC | plain, test AUC | difference |\n|---|---|---|---|")
        differences = []
        for seed in range(options.seeds):
            of_seed = settings.model_copy(update={"seed": seed})
            ours, theirs = test_auc(of_seed, Samples(data, manifest, of_seed, device), manifest)
            differences.append(ours - theirs)
            print(f"| {seed} | {ours:.4f} | {theirs:.4f} | {ours - theirs:+.4f} |")
        if differences:
            print(f"| mean | | | {statistics.mean(differences):+.4f} |")


if __name__ == "__main__":
    main()
