"""Runs everything once on a GPU: four models through all stages, compared with CPU; then speed.

    python perf/gpu_check.py --out results                      on a machine with a GPU
    python perf/gpu_check.py --device cpu --rows 200000         the same without a GPU, on smaller tables

Writes gpu_check.json and gpu_check.md to --out after each part, so that results are kept if it is
interrupted. Exits with 1 if a number of the GPU differs from that of the CPU.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ham_dist.config.load import load_run
from ham_dist.config.schema import RunSettings
from ham_dist.data.reader.batch import Batch
from ham_dist.distributed.ranks.process_group import process_group
from ham_dist.errors import HamError
from ham_dist.training.loop import mask_gradient, weight_step
from ham_dist.training.state import open_supernet

MODELS = ("fm", "deepfm", "autoint", "dcnv2")
FIELDS, EMBEDDING_DIM, STEPS = 39, 16, 30
VARIANTS = {
    "float16 tables": ["precision.tables=float16"],
    "bfloat16 tables": ["precision.tables=bfloat16"],
    "bfloat16 products": ["precision.dense=bfloat16"],
    "tables cached": ["sharding.compute_kernel=fused_uvm_caching"],
    "tables on the host": ["sharding.compute_kernel=fused_uvm"],
}
CLOSE = {"supernet": 2e-3, "narrow": 1e-2}
"""Largest difference of AUC between GPU and CPU.

Sums are computed in another order, so a search with a hard mask may keep other columns of equal value."""


def run_of(model: str, device: str, folder: Path) -> dict[str, Any]:
    """A short run in a process of its own: the GPU is hidden from the one for the CPU."""
    settings = [
        "data.synthetic.rows=50000",
        f"model.name={model}",
        "precision.dense=float32",
        "pretrain.max_epochs=3",
        "search.epochs=3",
        "retrain.max_epochs=3",
        "checkpoint.keep=1",
    ]
    command = [
        sys.executable,
        "-m",
        "ham_dist",
        "train",
        "--run-dir",
        str(folder),
        *(part for value in settings for part in ("--set", value)),
    ]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stdout + done.stderr)[-2000:]}
    result = json.loads(next(folder.glob("**/result.json")).read_text())
    return {
        "supernet": result["supernet"]["auc"],
        "narrow": result["test_auc"],
        "kept": result["kept_columns"],
        "device": result["device"],
        "bundle": any(folder.glob("**/bundle/manifest.json")),
    }


def same_numbers(device: str, folder: Path) -> dict[str, Any]:
    """Runs each model on the device and on CPU, and compares the results."""
    found = {}
    for model in MODELS:
        sides = {side: run_of(model, side, folder / f"{model}-{side}") for side in {"cpu", device}}
        failed = [side for side, result in sides.items() if "failed" in result]
        differences = (
            {} if failed else {name: abs(sides[device][name] - sides["cpu"][name]) for name in CLOSE}
        )
        agree = (
            not failed
            and all(differences[name] <= limit for name, limit in CLOSE.items())
            and all(side["bundle"] for side in sides.values())
        )
        found[model] = {"sides": sides, "differences": differences, "agree": agree}
    return found


def num_embeddings_of(rows: int) -> dict[str, int]:
    """39 fields, as in the DLRM benchmark: 13 of 100 rows, 5 with most rows, 21 that share a hundredth."""
    large, small = int(rows * 0.99) // 5, max(100, int(rows * 0.01) // 21)
    return {f"I{n}": 100 for n in range(13)} | {f"C{n}": large if n < 5 else small for n in range(26)}


def seconds_of(work: Callable[[], object], device: torch.device, times: int = STEPS) -> float:
    """Seconds of one call, after three calls to warm up."""
    for _ in range(3):
        work()
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait(device)
    return (time.perf_counter() - start) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def batch_of(num_embeddings: dict[str, int], rows: int, device: torch.device) -> Batch:
    ids = torch.cat(
        [
            (count * torch.rand(rows, device=device) ** 3).int().clamp(max=count - 1)
            for count in num_embeddings.values()
        ]
    )
    features = KeyedJaggedTensor(list(num_embeddings), ids, lengths=torch.ones_like(ids), stride=rows)
    return Batch(features, torch.randint(0, 2, (rows,), device=device).float(), rows)


def copying_bandwidth(size: int, device: torch.device) -> float:
    """Bytes a second, read and written, of copying `size` float32 numbers."""
    numbers = torch.ones(size, device=device)
    into = torch.empty_like(numbers)
    return 2 * numbers.nbytes / seconds_of(lambda: into.copy_(numbers), device)


def speed(rows: int, batch_rows: int, device: torch.device) -> dict[str, Any]:
    """Measures training, a step on alpha, and lookups alone: each model, and DeepFM under VARIANTS."""
    size = 1 << 28 if device.type == "cuda" else 1 << 24
    copied = copying_bandwidth(size, device)
    num_embeddings = num_embeddings_of(rows)
    batches = [batch_of(num_embeddings, batch_rows, device) for _ in range(4)]
    cases = {model: [f"model.name={model}"] for model in MODELS} | {
        f"deepfm, {name}": ["model.name=deepfm", *more] for name, more in VARIANTS.items()
    }
    found: dict[str, Any] = {"bytes a second of copying": copied, "cases": {}}
    for name, changes in cases.items():
        settings = [
            "optimizer.tables=rowwise_adagrad",
            "orthogonality.application=decoupled",
            f"data.batch_size={batch_rows}",
        ]
        try:
            found["cases"][name] = speed_of(
                load_run(None, [*settings, "precision.dense=float32", *changes]),
                num_embeddings,
                batches,
                device,
                copied,
            )
        except HamError as error:
            found["cases"][name] = {"refused": str(error)}
        gc.collect()  # A sharded model has reference cycles that hold its tables.
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return found


def speed_of(
    run: RunSettings,
    num_embeddings: dict[str, int],
    batches: list[Batch],
    device: torch.device,
    copied: float,
) -> dict[str, Any]:
    """Speed of one case.

    Args:
        copied: Bytes a second of copying.
    """
    state = open_supernet(run, num_embeddings, device, single_valued=num_embeddings)
    mask = torch.ones(state.sharded.mask.layout.size, device=device)
    supply = cycle(batches)

    def look_up() -> None:
        with torch.no_grad():
            state.sharded.model.tables.ebc(next(supply).sparse_features).values()

    step = seconds_of(lambda: weight_step(state, next(supply)), device)
    alpha = seconds_of(lambda: mask_gradient(state, next(supply), mask), device)
    lookup = seconds_of(look_up, device)
    # A row is read, and a vector of float32 written.
    row_bytes = EMBEDDING_DIM * (state.sharded.tables[0].number_bytes + 4)
    return {
        "samples a second": run.data.batch_size / step,
        "step on alpha, of a step": alpha / step,
        "lookups, share of the copying bandwidth": run.data.batch_size * FIELDS * row_bytes / lookup / copied,
        "peak bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


def report(found: dict[str, Any]) -> str:
    lines = [
        f"# {found['device']}",
        "",
        f"torch {found['torch']}, {found['rows']:,} rows of tables, batch {found['batch']:,}",
        "",
    ]
    lines += ["| model | supernet AUC: difference | narrow AUC: difference | agree |", "|---|---|---|---|"]
    for model, entry in found.get("numbers", {}).items():
        differences = [
            f"{entry['differences'][name]:.1e}" if entry["differences"] else "failed" for name in CLOSE
        ]
        lines.append(f"| {model} | {' | '.join(differences)} | {'yes' if entry['agree'] else 'NO'} |")
    lines += [
        "",
        "| model | samples/s | a step on alpha, of a step | lookups, of the copying bandwidth | peak GB |",
        "|---|---|---|---|---|",
    ]
    for model, entry in found.get("speed", {}).get("cases", {}).items():
        if "refused" in entry:
            lines.append(f"| {model} | not here: {entry['refused'].splitlines()[0]} | | | |")
            continue
        peak = "-" if entry["peak bytes"] is None else f"{entry['peak bytes'] / 1e9:.1f}"
        lines.append(f"| {model} | {entry['samples a second']:,.0f} | "
                     f"{entry['step on alpha, of a step']:.2f} | "
                     f"{entry['lookups, share of the copying bandwidth']:.2f} | {peak} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--rows",
        type=int,
        default=200_000_000,
        help="rows of all tables; 68 bytes a row: 16 columns, one number of state",
    )
    parser.add_argument("--batch", type=int, default=65_536)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(
            2,
            "gpu_check: torch finds no GPU (torch.cuda.is_available() is False).\n"
            "  Use --device cpu to run the program without one.\n",
        )
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    found = {"device": name, "torch": torch.__version__, "rows": options.rows, "batch": options.batch}
    options.out.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        (options.out / "gpu_check.json").write_text(json.dumps(found, indent=2))
        (options.out / "gpu_check.md").write_text(report(found))

    with tempfile.TemporaryDirectory() as folder:
        found["numbers"] = same_numbers(options.device, Path(folder))
    keep()
    with process_group() as device:
        found["speed"] = speed(options.rows, options.batch, device)
    keep()
    print(report(found))
    raise SystemExit(0 if all(entry["agree"] for entry in found["numbers"].values()) else 1)


if __name__ == "__main__":
    main()
