"""Raw records of 39 fields, as Criteo's, to ids; size, opening and building of the vocabulary.

    python perf/bench_encoder.py                    10 million values
    python perf/bench_encoder.py --values 500000    a quick run

Each time is the median of the rounds, by wall time and by the processor time of the process, which other
programs disturb less. Memory is the highest of the process that builds the vocabulary.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ham_dist.data.format.shards import PARQUET, VOCABULARY_SCHEMA
from ham_dist.data.recipe.load import Recipe, load_recipe
from ham_dist.serving.build import Source, build_vocabulary
from ham_dist.serving.fields_encoder import FieldsEncoder
from ham_dist.serving.vocabulary import Vocabulary

RECORDS = 1000
CHUNK = 1 << 20


def hexadecimal(numbers: "np.ndarray[Any, np.dtype[np.uint32]]") -> pa.Array:
    """Text of 8 digits each, as Criteo's categories."""
    digits = np.char.mod("%08x", numbers)
    return pa.array(digits.tolist(), pa.string())


def write_vocabularies(folder: Path, recipe: Recipe, values: int) -> dict[str, Source]:
    """Writes one Parquet vocabulary per field; the categorical fields share `values`."""
    categorical = [name for name, field in recipe.fields.items() if field.kind == "categorical"]
    each = values // len(categorical)
    sources = {}
    for number, name in enumerate(recipe.fields):
        path = folder / f"{name}.parquet"
        count = each if name in categorical else 300
        with pq.ParquetWriter(path, VOCABULARY_SCHEMA, **PARQUET) as writer:
            for first in range(0, count, CHUNK):
                ids = np.arange(first, min(first + CHUNK, count))
                # An odd factor keeps the values of a field distinct.
                text = (
                    hexadecimal(((ids * 2_654_435_761 + number) & 0xFFFF_FFFF).astype(np.uint32))
                    if name in categorical
                    else pa.array((ids - 2).astype(str).tolist(), pa.string())
                )
                columns = [text, pa.array(ids + 1, pa.int32()), pa.array(np.ones(len(ids), np.int64))]
                writer.write_table(pa.table(columns, schema=VOCABULARY_SCHEMA))
        sources[name] = Source(path, count + 1)
    return sources


def records(recipe: Recipe, sources: dict[str, Source]) -> list[dict[str, Any]]:
    """Records of known and unknown values; a tenth of the numbers is missing."""
    random, made = np.random.default_rng(0), []
    columns: dict[str, list[Any]] = {}
    for name, field in recipe.fields.items():
        if field.kind == "numeric":
            numbers = random.lognormal(3, 2, RECORDS).astype(int).tolist()
            columns[name] = [None if random.random() < 0.1 else number for number in numbers]
        else:
            known = next(pq.ParquetFile(sources[name].path).iter_batches(CHUNK, columns=["value"]))["value"]
            columns[name] = known.take(pa.array(random.integers(len(known), size=RECORDS))).to_pylist()
    for row in range(RECORDS):
        made.append({name: column[row] for name, column in columns.items()})
    return made


def measured(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of one call, by wall time and by processor time."""
    wall, processor = [], []
    for _ in range(rounds):
        start, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    return statistics.median(wall), statistics.median(processor)


def build(out: Path, sources: dict[str, Source]) -> None:
    """Builds the vocabulary and prints the memory that this process needed."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    header = build_vocabulary(out, sources)
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = f"memory {before / 1e3:.0f} MB before, {peak / 1e3:.0f} MB at most"
    print(f"built {header.keys:,} keys in {seconds:.1f} s; {memory}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--values", type=int, default=10_000_000, help="values of all vocabularies together")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    recipe = load_recipe("criteo-kaggle")
    with tempfile.TemporaryDirectory() as folder:
        sources = write_vocabularies(Path(folder), recipe, options.values)
        hashed = Path(folder) / "hashed.safetensors"
        # A process of its own, so that its memory is not that of the values above.
        process = multiprocessing.get_context("spawn").Process(target=build, args=(hashed, sources))
        process.start()
        process.join()
        wall, _ = measured(lambda: Vocabulary(hashed), options.rounds)
        vocabulary = Vocabulary(hashed)
        size = hashed.stat().st_size
        print(f"{size / vocabulary.header.keys:.2f} bytes a key; opened in {wall * 1e3:.2f} ms")
        encoder = FieldsEncoder(recipe, {name: source.rows for name, source in sources.items()}, vocabulary)
        made = records(recipe, sources)
        table = pa.Table.from_pylist(made)
        one = measured(lambda: [encoder.encode(record) for record in made], options.rounds)
        print(f"one dict: {one[0] / RECORDS * 1e6:.0f} us, processor {one[1] / RECORDS * 1e6:.0f} us")
        for rows in (64, RECORDS):
            dicts = measured(partial(encoder.encode, made[:rows]), options.rounds)
            arrow = measured(partial(encoder.encode, table[:rows]), options.rounds)
            print(
                f"{rows} records, us a record: dicts {dicts[0] / rows * 1e6:.0f} "
                f"(processor {dicts[1] / rows * 1e6:.0f}), "
                f"Arrow {arrow[0] / rows * 1e6:.0f} (processor {arrow[1] / rows * 1e6:.0f})"
            )


if __name__ == "__main__":
    main()
