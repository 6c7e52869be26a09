"""Probabilities by the runtimes of `Scorer`, compared with the fp16 bundle's model on tensors by field.

    python perf/bench_scorer.py                     39 tables of 10^5 rows
    python perf/bench_scorer.py --rows 1000000
    python perf/bench_scorer.py --rounds 5          a look

DeepFM over dims of 1 to 16, one thread. The first table has the model alone, from checked ids to
probabilities; the second one raw record, and the candidates of one user, to probabilities. The sides take
turns in each round; a time is the median over the rounds, and a ratio is taken round by round. Ids are
uniform, so most rows come from memory. Compiled models stay in the cache folder for later runs.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ham_dist.data.format.shards import PARQUET, VOCABULARY_SCHEMA
from ham_dist.embedding.tables import TableChunk
from ham_dist.export.bundle import open_bundle
from ham_dist.export.compact import Ids
from ham_dist.export.manifest import FieldEntry
from ham_dist.export.writer import Description, write_bundle
from ham_dist.models.deepfm import DeepFMSettings
from ham_dist.models.registry import build_interaction
from ham_dist.serving import Scorer
from ham_dist.serving.id_batch import IdBatch

FIELDS = 39
SIZES = (1, 16, 64, 512, 4096)
USER_FIELDS, CANDIDATES = 30, 500
FORMER = "model on tensors, fp16"


def dims() -> dict[str, int]:
    """Dims of the fields: 1 to 16, more small ones than large ones, in no order."""
    drawn = np.random.default_rng(0).beta(1, 1.3, FIELDS)
    return {f"C{number}": 1 + int(16 * share) for number, share in enumerate(drawn)}


def write_vocabulary(folder: Path, values: int) -> None:
    """Writes a vocabulary of each field: id i has the raw value v<i>."""
    folder.mkdir()
    ids = np.arange(1, values + 1)
    text = pa.array([f"v{id}" for id in ids], pa.string())
    columns = [text, pa.array(ids, pa.int32()), pa.array(np.ones(values, np.int64))]
    table = pa.table(columns, schema=VOCABULARY_SCHEMA)
    for field in dims():
        pq.write_table(table, folder / f"{field}.parquet", **PARQUET)


def write(out: Path, rows: int, precision: str, vocabulary: Path) -> Path:
    """Writes a bundle of DeepFM with random weights, the same for each precision."""
    torch.manual_seed(0)
    settings = DeepFMSettings()
    interaction = build_interaction(settings, dims()).eval()
    fields = [FieldEntry(name=field, num_embeddings=rows, embedding_dim=dim) for field, dim in dims().items()]
    recipe: dict[str, Any] = {
        "name": "generated",
        "source": "this benchmark",
        "format": {"separator": ","},
        "samples": {"file": "records.csv", "columns": [*dims(), "label"]},
        "label": {"column": "label", "positive": ["1"], "negative": ["0"]},
        "fields": {field: {"kind": "categorical"} for field in dims()},
    }
    write_bundle(
        out,
        Description(fields, settings, precision=precision, recipe=recipe),
        chunks=(TableChunk(field, 0, 0.1 * torch.randn(rows, dim)) for field, dim in dims().items()),
        first_order_chunks=(),
        dense=interaction.state_dict(),
        vocabulary=vocabulary,
    )
    return out


def former(bundle: Path) -> Callable[[Mapping[str, Any]], Any]:
    """The bundle's model on ids by field, as `ham-dist score` runs it."""
    model = open_bundle(bundle).model()

    def run(ids: Mapping[str, Any]) -> Any:
        tensors: dict[str, Ids] = {name: torch.from_numpy(column) for name, column in ids.items()}
        with torch.inference_mode():
            return torch.sigmoid(model(tensors)).numpy()

    return run


def compare(sides: Mapping[str, Callable[[], object]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of one call of each side, by round; the sides take turns."""
    clock = time.process_time if options.processor else time.perf_counter
    counts = {}
    for name, call in sides.items():
        call()
        start = time.perf_counter()
        call()
        counts[name] = max(1, int(options.seconds / (time.perf_counter() - start)))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, call in sides.items():
            start = clock()
            for _ in range(counts[name]):
                call()
            found[name].append((clock() - start) / counts[name])
    return found


def cells(found: Mapping[str, list[float]]) -> str:
    """Medians in us, and how many times faster than the first side."""
    first = next(iter(found.values()))
    texts = []
    for times in found.values():
        ratio = statistics.median(before / now for before, now in zip(first, times, strict=True))
        texts.append(f"{1e6 * statistics.median(times):.0f} ({ratio:.1f})")
    return " | ".join(texts)


def header(first: str, sides: Mapping[str, object]) -> None:
    print(f"\n| {first} | " + " | ".join(sides) + " |")
    print("|---|" + "---|" * len(sides))


def model_alone(folder: Path, options: argparse.Namespace) -> None:
    """Checked ids to probabilities."""
    before = former(folder / "fp16")
    scorers = {
        f"{scorer.runtime.name} {precision}": scorer
        for precision in ("fp16", "int8")
        for scorer in (Scorer(folder / precision, "eager"), Scorer(folder / precision, "aot"))
    }
    random = np.random.default_rng(1)
    for number, size in enumerate(SIZES):
        singles = random.integers(options.rows, size=(FIELDS, size))
        batch = IdBatch(singles, (), size)
        ids = dict(zip(dims(), singles, strict=True))
        sides: dict[str, Callable[[], object]] = {FORMER: lambda ids=ids: before(ids)}  # type: ignore[misc]
        for name, scorer in scorers.items():
            sides[name] = lambda scorer=scorer, batch=batch: scorer.run(batch)  # type: ignore[misc]
        if not number:
            header("records, us (times faster)", sides)
        print(f"| {size} | {cells(compare(sides, options))} |")


def raw_values(folder: Path, options: argparse.Namespace) -> None:
    """Raw values to probabilities."""
    before, scorer = former(folder / "fp16"), Scorer(folder / "fp16", "aot")
    encoder = scorer.encoder
    assert encoder is not None, "the bundle has a vocabulary"
    random = np.random.default_rng(2)
    values = random.integers(1, options.values + 1, size=(CANDIDATES, FIELDS))
    made = [dict(zip(dims(), (f"v{id}" for id in row), strict=True)) for row in values]
    record = made[0]
    fields = list(dims())
    user = {field: record[field] for field in fields[:USER_FIELDS]}
    items = [{field: one[field] for field in fields[USER_FIELDS:]} for one in made]
    joined = [user | item for item in items]
    batch, many = scorer.encode(record), scorer.encode_candidates(user, items)
    rows: dict[str, dict[str, Callable[[], object]]] = {
        "one record, raw": {
            FORMER: lambda: before(encoder.encode(record)),
            "Scorer": lambda: scorer.score(record),
            "its encoding alone": lambda: scorer.encode(record),
            "its model alone": lambda: scorer.run(batch),
        },
        f"{CANDIDATES} candidates of one user, raw": {
            FORMER: lambda: before(encoder.encode(joined)),
            "Scorer": lambda: scorer.rank(user, items),
            "its encoding alone": lambda: scorer.encode_candidates(user, items),
            "its model alone": lambda: scorer.run(many),
        },
    }
    header("us (times faster)", rows["one record, raw"])
    for name, sides in rows.items():
        print(f"| {name} | {cells(compare(sides, options))} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="rows of each table")
    parser.add_argument("--values", type=int, default=10_000, help="known raw values of each field")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=0.05, help="seconds of a side in a round")
    parser.add_argument(
        "--processor", action="store_true", help="processor time, which other programs disturb less"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_vocabulary(folder / "vocabulary", options.values)
        for precision in ("fp16", "int8"):
            write(folder / precision, options.rows, precision, folder / "vocabulary")
        mean = sum(dims().values()) / FIELDS
        print(f"{FIELDS} tables of {options.rows:,} rows, dims 1 to 16, mean {mean:.1f}")
        model_alone(folder, options)
        raw_values(folder, options)


if __name__ == "__main__":
    main()
