import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ham_dist.config.load import load_run
from ham_dist.data.format.manifest import Manifest
from ham_dist.data.reader.split import open_split
from ham_dist.data.synthetic.write import generate
from ham_dist.errors import DataError
from ham_dist.training.samples import Samples, StageName, require_samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "data"
    generate(load_run(None, ["data.synthetic.rows=1000"]).data.synthetic, folder)
    return folder


def with_split(name: str, **changes: int) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        return manifest.model_copy(
            update={"splits": manifest.splits | {name: manifest.splits[name].model_copy(update=changes)}}
        )

    return change


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (with_split("validation", rows=0, positives=0), [], r": the validation split has no samples"),
        (with_split("test", rows=0, positives=0), [], r": the test split has no samples"),
        (
            with_split("validation", positives=0),
            [],
            r": all samples of the validation split have label 0, so the validation AUC",
        ),
        (
            with_split("validation", positives=100),
            [],
            r": all samples of the validation split have label 1, so the validation AUC",
        ),
        (
            with_split("train"),
            ["data.batch_size=801"],
            r"data.batch_size = 801: more than the 800 samples of the train split\n  Set it to at most that",
        ),
    ],
)
def test_what_no_run_could_end_with_is_refused_before_training(
    folder: Path, change: Callable[[Manifest], Manifest], settings: list[str], message: str
) -> None:
    manifest = change(Manifest.load(folder))
    assert manifest.splits["validation"].rows in (0, 100)
    with pytest.raises(DataError, match=message):
        Samples(folder, manifest, load_run(None, ["data.batch_size=100", *settings]), torch.device("cpu"))
    Samples(folder, Manifest.load(folder), load_run(None, ["data.batch_size=100"]), torch.device("cpu"))


def test_fewer_samples_than_ranks_are_refused_before_training(folder: Path) -> None:
    manifest, settings = Manifest.load(folder), load_run(None, ["data.batch_size=200"])
    require_samples(folder, manifest, settings, ranks=100)
    with pytest.raises(DataError, match="its validation split has 100 samples, fewer than the 101 ranks"):
        require_samples(folder, manifest, settings, ranks=101)
    with pytest.raises(DataError, match=r"data.batch_size = 200: fewer rows than the 201 ranks"):
        require_samples(folder, manifest, settings, ranks=201)


def drawn(samples: Samples, name: str) -> list[tuple[int, ...]]:
    """The rows of one pass for the method or for evaluation, as tuples of label and ids."""
    if name == "evaluation":
        batches = list(samples.evaluation("validation"))
    elif name == "once":
        batches = list(samples.once("validation"))
    else:  # two passes of the method's steps
        batches = list(itertools.islice(samples.forever("validation", 0), 2 * samples.steps))
    return [
        (int(label), *ids)
        for batch in batches
        for label, ids in zip(
            batch.labels.tolist(),
            batch.sparse_features.values().view(-1, len(batch.labels)).T.tolist(),
            strict=True,
        )
    ]


def test_halves_of_the_validation_split_are_disjoint_and_together_the_split(folder: Path) -> None:
    manifest, device = Manifest.load(folder), torch.device("cpu")
    settings = ["data.batch_size=25", "data.evaluation_batch_size=30"]
    shared = Samples(folder, manifest, load_run(None, settings), device)
    whole = Counter(drawn(shared, "evaluation"))
    assert Counter(drawn(shared, "once")) == whole
    assert sum(whole.values()) == manifest.splits["validation"].rows == 100
    for rows in (10, 10**6):  # streamed, and in memory
        halved = Samples(
            folder,
            manifest,
            load_run(None, [*settings, "search.validation=halved", f"data.shuffle_rows={rows}"]),
            device,
        )
        first, second = Counter(drawn(halved, "once")), Counter(drawn(halved, "evaluation"))
        assert first + second == whole
        assert sum(first.values()) == sum(second.values()) == 50
        assert set(drawn(halved, "forever")) == set(first)
        assert Counter(drawn(halved, "forever")[:50]) == first


def test_a_half_without_both_labels_is_refused_before_training(tmp_path: Path) -> None:
    """One positive sample in the validation split can be in one half only."""
    generate(load_run(None, ["data.synthetic.rows=1000"]).data.synthetic, tmp_path / "data")
    manifest = Manifest.load(tmp_path / "data")
    path = tmp_path / "data" / manifest.splits["validation"].shards[0].file
    table = pq.read_table(path)
    labels = pa.array([0] * 99 + [1], pa.int8())
    pq.write_table(table.set_column(table.column_names.index("label"), "label", labels), path)
    manifest = with_split("validation", positives=1)(manifest)
    shared, halved = (
        load_run(None, ["data.batch_size=100", f"search.validation={value}"])
        for value in ("shared", "halved")
    )
    Samples(tmp_path / "data", manifest, shared, torch.device("cpu"))
    with pytest.raises(
        DataError,
        match=r'search.validation = "halved", but all 50 samples of one half of the validation split have '
        "label 0; expected both labels in each half",
    ):
        Samples(tmp_path / "data", manifest, halved, torch.device("cpu"))


def test_halves_with_fewer_samples_than_ranks_are_refused(folder: Path) -> None:
    manifest, settings = (
        Manifest.load(folder),
        load_run(None, ["data.batch_size=200", "search.validation=halved"]),
    )
    require_samples(folder, manifest, settings, ranks=50)
    with pytest.raises(
        DataError, match="one half of its validation split has 50 samples, fewer than the 51 ranks"
    ):
        require_samples(folder, manifest, settings, ranks=51)


@pytest.mark.parametrize("epoch", [0, 3])
def test_the_orders_of_the_stages_are_those_of_all_versions(folder: Path, epoch: int) -> None:
    """A run that another version began is resumed to the same bits, and seeds can be compared."""
    manifest, settings = Manifest.load(folder), load_run(None, ["seed=7", "data.batch_size=100"])
    samples = Samples(folder, manifest, settings, torch.device("cpu"))
    split = open_split(folder, manifest, "train", settings.data)

    def ids(number: int) -> list[int]:
        order = (7, number)
        batch = next(iter(split.batches(100, rank=0, world_size=1, order=order, keep_last=False)))
        ids: list[int] = batch.sparse_features.values().tolist()
        return ids

    def first(stage: StageName) -> list[int]:
        ids: list[int] = next(samples.training(stage, epoch)).sparse_features.values().tolist()
        return ids

    found = [first(stage) for stage in get_args(StageName)]
    assert found == [ids(4 * epoch), ids(4 * epoch + 1), ids(4 * epoch + 2), found[3]]
    assert found[3] not in found[:3]
    taken = next(itertools.islice(samples.forever("training", 0), epoch * samples.steps, None))
    assert taken.sparse_features.values().tolist() == ids(4 * epoch + 3)
