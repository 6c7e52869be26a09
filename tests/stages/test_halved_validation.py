"""search.validation = "halved": the method reads V1, and every validation AUC is that of V2."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ham_dist.config.schema import RunSettings
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.format.shards import LABEL, stored_file
from ham_dist.data.reader.halves import Half, in_half
from ham_dist.data.synthetic.write import generate
from tests.support.ranks import run_on_ranks
from tests.support.small_run import tiny_run
from tests.support.whole_runs import FLOAT64, assert_same_bits, do_part, do_run, metrics, result


def with_flipped_labels(folder: Path, half: Half, out: Path) -> Path:
    """A copy of the data in `folder`, with the labels of one half of its validation split flipped."""
    shutil.copytree(folder, out)
    manifest = Manifest.load(out)
    entry = manifest.splits["validation"]
    (shard,) = entry.shards
    table = pq.read_table(out / shard.file)
    labels = np.array(table[LABEL].to_pylist(), dtype=np.int8) ^ in_half(0, entry.rows, half)
    pq.write_table(table.set_column(0, LABEL, pa.array(labels)), out / shard.file)
    changed = entry.model_copy(
        update={
            "positives": int(labels.sum()),
            "shards": (stored_file(out, out / shard.file, entry.rows),),
        }
    )
    manifest.model_copy(update={"splits": manifest.splits | {"validation": changed}}).save(out)
    return out


def run_on(data: Path) -> RunSettings:
    return tiny_run(
        data={"path": str(data)},
        pretrain={"max_epochs": 1},
        search={"validation": "halved", "epochs": 1},
        retrain={"max_epochs": 1},
    )


def test_the_method_reads_the_first_half_and_every_auc_is_of_the_second(tmp_path: Path) -> None:
    data = tmp_path / "data"
    generate(tiny_run().data.synthetic, data)
    folders = {
        "as it is": data,
        "first flipped": with_flipped_labels(data, "first", tmp_path / "first"),
        "second flipped": with_flipped_labels(data, "second", tmp_path / "second"),
    }
    found = {}
    for name, folder in folders.items():
        do_run(run_on(folder), tmp_path / name)
        found[name] = {row["stage"]: row for row in metrics(tmp_path / name)}
    before, first, second = found.values()
    # Flipped labels turn an AUC a into 1 - a.
    assert first["pretrain"]["validation_auc"] == before["pretrain"]["validation_auc"]
    assert second["pretrain"]["validation_auc"] == pytest.approx(1 - before["pretrain"]["validation_auc"])
    assert second["search"]["validation_auc"] == pytest.approx(1 - before["search"]["validation_auc"])
    assert second["search"]["alpha"] == before["search"]["alpha"] != first["search"]["alpha"]


def test_ranks_that_stop_and_resume_in_the_search_give_the_unbroken_run(tmp_path: Path) -> None:
    settings = tiny_run(pretrain={"max_epochs": 1}, search={"validation": "halved"}, precision=FLOAT64)
    do_run(settings, tmp_path / "unbroken")
    run_on_ranks(2, do_part, settings, tmp_path / "run", 12 + 7)
    run_on_ranks(3, do_run, settings, tmp_path / "run", True)
    assert_same_bits(tmp_path / "run", tmp_path / "unbroken")
    do_run(settings.model_copy(update={"search": tiny_run().search}), tmp_path / "shared")
    assert result(tmp_path / "shared") != result(tmp_path / "unbroken")
